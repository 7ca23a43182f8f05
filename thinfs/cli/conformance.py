"""`thinfs conformance`: dm-thin's contract as a test suite, against the userspace engine, a server or a kernel.

Promises: pytest's own words and exit status; what a backend cannot run is listed with the reason. The suite is the
package thinfs_suites.conformance, in a checkout tests/conformance; it needs pytest and pytest-trio (thinfs[test]).
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

BACKENDS: Final = {
    "userspace": "the engine, in process, in virtual time",
    "server": "the engine in a server of the suite's own, I/O through its mount",
    "server-pyfuse3": "the same without the threads that serve what is mapped",
    "ioctl": "the same, asked by device-mapper's ioctls as a kernel is",
    "kernel": "this machine's own kernel, as root: it must have no mapped devices",
    "kernel6.1": "Linux 6.1 in a User-Mode Linux guest",
    "kernel6.12": "Linux 6.12 in a User-Mode Linux guest",
    "kernel7.2": "Linux 7.2 in a User-Mode Linux guest",
}
_NEEDED: Final = ("pytest", "pytest_trio", "trio")


def suite_directory() -> Path | None:
    found = importlib.util.find_spec("thinfs_suites")
    if found is not None and found.origin is not None:
        return Path(found.origin).parent / "conformance"
    checkout = Path(__file__).parents[2] / "tests" / "conformance"
    return checkout if checkout.is_dir() else None


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="thinfs conformance",
        description="Run the conformance suite. Other options are pytest's: -k EXPRESSION, -x, -v, --durations=N …",
        epilog="backends: " + "; ".join(f"{name}: {what}" for name, what in BACKENDS.items()),
    )
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="may be given several times")
    options, rest = parser.parse_known_args(words)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"thinfs conformance: {', '.join(missing)} not installed: pip install 'thinfs[test]'", file=sys.stderr)
        return 1
    directory = suite_directory()
    if directory is None:
        print("thinfs conformance: the suite is not installed: no package thinfs_suites", file=sys.stderr)
        return 1
    backends: list[str] = options.backend or ["userspace"]
    if "kernel" in backends and os.geteuid() != 0:
        print("thinfs conformance: --backend kernel needs root", file=sys.stderr)
        return 1
    os.environ["THINFS_CONFORMANCE_BACKENDS"] = " ".join(backends)
    import pytest

    settings = ["-c", os.devnull, f"--rootdir={directory}", "-p", "no:cacheprovider", "-o", "trio_mode=true"]
    return int(
        pytest.main(
            [*settings, "-W", "error", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-ra", str(directory), *rest]
        )
    )
