"""What must hold for any version of thin-provisioning-tools: for the judges, and for what this machine has."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.thin_tools import VERSIONS, answer, installed, judge
from thinfs.cli.main import run


@pytest.fixture(params=["installed", *VERSIONS])
def directory(request: pytest.FixtureRequest) -> Path:
    """Of the programs of one version."""
    if request.param != "installed":
        return judge("thin_check", request.param).parent
    found = installed("thin_check")
    if found is None:
        pytest.skip("thin-provisioning-tools is not installed")
    return found.parent


def status_of(program: Path, *arguments: str | Path) -> int:
    return subprocess.run([program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=60).returncode


def test_a_pool_of_ours_is_accepted(directory: Path, pool: Path) -> None:
    assert status_of(directory / "thin_check", pool) == 0


def test_a_damaged_node_is_refused_by_them_and_by_us(directory: Path, held: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(held.read_bytes())
    with damaged.open("r+b") as file:
        file.seek(int.from_bytes(damaged.read_bytes()[320:328], "little") * 4096 + 100)  # the data mapping root
        file.write(b"\xff\xff")
    assert status_of(directory / "thin_check", damaged) != 0
    assert run(["check", "-q", str(damaged)]) == 1


def test_what_they_dump_and_restore_is_the_same_pool_to_us(
    directory: Path, pool: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    xml, restored = tmp_path / "xml", tmp_path / "restored"
    assert status_of(directory / "thin_dump", pool, "-o", xml) == 0
    with restored.open("wb") as file:
        os.truncate(file.fileno(), max(pool.stat().st_size, 4 << 20))
    assert status_of(directory / "thin_restore", "-i", xml, "-o", restored) == 0
    assert run(["check", "-q", str(restored)]) == 0
    capfd.readouterr()
    assert run(["dump", str(restored)]) == 0
    assert capfd.readouterr().out == answer("thin_dump", pool).stdout
