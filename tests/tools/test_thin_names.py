"""Links to the script called thin_check and so on, and what all tools have in common."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.thin_tools import V1_1_0, answer
from tests.tools.pools import changing
from thinfs.cli.main import THIN_TOOLS, run

SCRIPT = Path(sys.executable).with_name("thinfs")


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("links")
    for name in THIN_TOOLS:
        (directory / name).symlink_to(SCRIPT)
    return directory


def called(links: Path, tool: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([links / tool, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ("thin_check", ("POOL",)),
        ("thin_check", ("-q", "POOL")),
        ("thin_check", ("-q", "--clear-needs-check-flag", "POOL")),  # as LVM calls it
        ("thin_check", ("-q", "--clear-needs-check-flag", "--ignore-non-fatal-errors", "POOL")),
        ("thin_check", ("-q", "--clear-needs-check-flag", "--skip-mappings", "POOL")),
        ("thin_check", ("-q", "--auto-repair", "-m", "POOL")),
        ("thin_check", ("--bogus", "POOL")),
        ("thin_check", ()),
        ("thin_check", ("/nonexistent",)),
        ("thin_check", ("-V",)),
        ("thin_dump", ("POOL",)),
        ("thin_dump", ("-f", "human_readable", "POOL")),
        ("thin_dump", ("-f", "bogus", "POOL")),
        ("thin_ls", ("POOL",)),
        ("thin_ls", ("-o", "DEV,EXCLUSIVE", "--no-headers", "POOL")),
        ("thin_ls", ("-m", "POOL")),
        ("thin_delta", ("--snap1", "1", "POOL")),
        ("thin_rmap", ("POOL",)),
        ("thin_rmap", ("--region", "9..3", "POOL")),
        ("thin_restore", ("-i", "POOL", "-o", "/nonexistent")),
        ("thin_restore", ("-i", "POOL")),
        ("thin_repair", ("-i", "/nonexistent", "-o", "/nonexistent")),
        ("thin_metadata_size", ("-b", "64k", "-s", "1t", "-m", "1000")),
    ],
    ids=lambda one: one if isinstance(one, str) else " ".join(one),
)
def test_a_link_exits_and_prints_as_the_tool(
    links: Path, pools: dict[str, Path], tool: str, words: tuple[str, ...]
) -> None:
    concrete = [str(pools["seed 0"]) if word == "POOL" else word for word in words]
    ours, theirs = called(links, tool, *concrete), answer(tool, *concrete)
    assert ours.returncode == theirs.returncode
    if tool != "thin_check" or words == ("-V",):
        assert ours.stdout == theirs.stdout


@pytest.mark.parametrize("form", ["xml", "human_readable"])
def test_the_form_of_1_x_is_there_as_well(pools: dict[str, Path], form: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a pool that shares nothing: 1.x names what is shared, `thinfs dump` writes it out each time."""
    pool = pools["docker"].with_name("flat")
    assert run(["dump", "-f", "xml", "-o", str(pool) + ".xml", str(pools["docker"])]) == 0
    with pool.open("wb") as file:
        file.truncate(8 << 20)
    assert answer("thin_restore", "-i", f"{pool}.xml", "-o", pool).returncode == 0
    assert run(["dump", "-f", f"{form}1", str(pool)]) == 0
    assert capfd.readouterr().out == answer("thin_dump", "-f", form, pool, version=V1_1_0).stdout


def test_json_has_what_the_text_has(held: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import json

    assert run(["dump", "-f", "json", str(held)]) == 0
    pool = json.loads(capfd.readouterr().out)
    assert run(["dump", str(held)]) == 0
    text = capfd.readouterr().out
    assert sum(len(one["mappings"]) for one in pool["devices"]) == text.count("_mapping ")
    assert pool["devices"][0]["dev_id"] == int(text.split('dev_id="')[1].split('"')[0])
    assert run(["check", "--json", str(held)]) == 0
    assert json.loads(capfd.readouterr().out)["passed"] is True


def test_a_format_of_one_s_own(held: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def pieces(pool):\n    for thin in pool.thins:\n        yield b'%d\\n' % thin.dev_id\n")
    assert run(["dump", "-f", f"custom={file}", str(held)]) == 0
    assert capfd.readouterr().out.splitlines()
    for text in ("pieces = 3", "raise ValueError('mine')", "("):
        file.write_text(text)
        assert run(["dump", "-f", f"custom={file}", str(held)]) == 1
        assert len(capfd.readouterr().err.splitlines()) == 1


def test_other_roots_than_the_superblock_s_may_be_checked(held: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "-q", "--override-mapping-root", "1", str(held)]) == 1
    assert run(["check", "-q", "--override-details-root", "1", str(held)]) == 1


def test_an_interrupted_tool_is_one_line_and_130(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    with pool.open("wb") as file:
        file.truncate(64 << 20)
    with changing(pool) as metadata:
        metadata.resize_data(1000)
    command = [sys.executable, "-c", _INTERRUPTED, str(pool)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "thinfs check: interrupted\n")


_INTERRUPTED = """
import os, signal, sys
from thinfs.blockdev import FileDevice
from thinfs.cli import main
read = FileDevice.read
def interrupted(self, offset, length):
    if offset:
        os.kill(os.getpid(), signal.SIGINT)
    return read(self, offset, length)
FileDevice.read = interrupted
sys.argv = ["thinfs", "check", sys.argv[1]]
main.main()
"""


@pytest.mark.parametrize(
    "words", [("dump",), ("ls",), ("map",), ("check",), ("rmap", "--region", "0..9")], ids=" ".join
)
def test_an_output_that_is_full_is_one_line_and_1(held: Path, words: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        command: list[str | Path] = [SCRIPT, *words, held]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"thinfs {words[0]}: standard output: No space left on device"]
