"""Every raw ioctl's errno, header and payload on the door, as kernel 6.1 gives them; where not, the reason is here."""

import re
from pathlib import Path

from kernel_backend.runner import Guest
from tests.ioctl.conftest import Run

PROGRAM = str(Path(__file__).with_name("raw_ioctls.py"))
PYTHON = "/usr/bin/python3"

# label: why the door's answer is another than 6.1's
EXPECTED = {
    "message without a table": "6.1 answers 2 and drops the message in silence; EINVAL is 6.12's",
    "create dot": "the device is a file of that name; 6.12 refuses it too",
    "remove dot": "there is none",
}


def rows(text: str) -> list[tuple[str, str]]:
    """(label, answer with its payload) of each ioctl. No uevent is ever generated: there is no udev to wait for."""
    found: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("    "):
            found[-1] = (found[-1][0], found[-1][1] + line)
        else:
            label, _, answer = line.partition(": ")
            found.append((label, re.sub(r"\|?UEVENT", "", answer)))
    return found


def test_the_door_answers_raw_ioctls_as_kernel_6_1(guest6_1: Guest, run: Run) -> None:
    kernel = guest6_1.shell([PYTHON, PROGRAM])
    assert kernel.returncode == 0, kernel.stderr
    theirs, ours = rows(kernel.stdout), rows(run(PYTHON, PROGRAM).stdout)
    assert len(theirs) > 150
    assert [label for label, _ in theirs] == [label for label, _ in ours]
    pairs = list(zip(theirs, ours, strict=True))
    differing = {label: (answer, mine) for (label, answer), (_, mine) in pairs if answer != mine}
    assert differing.keys() == EXPECTED.keys(), differing
    print(f"{len(pairs)} ioctls, {sum(a == b for a, b in pairs)} with equal errno, header and payload")


def test_the_kernels_differ_from_each_other_in_three_errnos_and_their_targets_versions(
    guest6_1: Guest, guest6_12: Guest
) -> None:
    old, new = (rows(guest.shell([PYTHON, PROGRAM]).stdout) for guest in (guest6_1, guest6_12))
    differing = {a[0] for a, b in zip(old, new, strict=True) if a != b}
    versions = {"target version", *(f"version of {name}" for name in ("thin-pool", "thin", "zero", "error"))}
    assert differing == {"message without a table", "create dot", "remove dot"} | versions
