"""`thinfs dump` and `thinfs ls`: byte for byte what thin_dump and thin_ls print."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.thin_tools import answer
from tests.tools.pools import changing, make_pool
from thinfs.blockdev import FileDevice
from thinfs.cli.main import run
from thinfs.tools.listing import FIELDS

EVERY_FIELD = ",".join(FIELDS)


def printed(capfd: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert run([str(word) for word in words]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("form", ["xml", "human_readable"])
def test_a_dump_is_thin_dump_s(pool: Path, form: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert printed(capfd, "dump", "-f", form, pool) == answer("thin_dump", "-f", form, pool).stdout


def test_a_dump_of_docker_s_pool_is_the_one_that_came_with_it(
    pools: dict[str, Path], shared_dump: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert printed(capfd, "dump", pools["docker"]) == shared_dump


@pytest.fixture
def shared_dump() -> str:
    path = Path(__file__).parents[3] / "shared/data/docker-ext4-clean/clean.thin_dump.xml"
    if not path.exists():
        pytest.skip("clean.thin_dump.xml of the Docker pool is not here")
    return path.read_text()


def test_a_dump_of_one_device_is_thin_dump_s(pools: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    for dev_id in ("7", "700"):
        expected = answer("thin_dump", "--dev-id", dev_id, pools["docker"]).stdout
        assert printed(capfd, "dump", "--dev-id", dev_id, pools["docker"]) == expected


def test_a_dump_without_mappings_is_thin_dump_s(pool: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert printed(capfd, "dump", "--skip-mappings", pool) == answer("thin_dump", "--skip-mappings", pool).stdout


@pytest.mark.parametrize("form", ["xml", "human_readable"])
def test_a_dump_of_a_metadata_snapshot_is_thin_dump_s(held: Path, form: str, capfd: pytest.CaptureFixture[str]) -> None:
    expected = answer("thin_dump", "-m", "-f", form, held).stdout
    assert printed(capfd, "dump", "-m", "-f", form, held) == expected
    device = FileDevice(str(held), read_only=True)
    block = int.from_bytes(device.read(56, 8), "little")
    device.close()
    assert printed(capfd, "dump", f"-m{block}", "-f", form, held) == expected
    assert printed(capfd, "dump", f"--metadata-snap={block}", "-f", form, held) == expected


def test_a_dump_to_a_file_prints_nothing(held: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert printed(capfd, "dump", "-o", tmp_path / "out", held) == ""
    assert (tmp_path / "out").read_text() == answer("thin_dump", held).stdout


def test_a_dump_that_nobody_reads_ends_quietly(held: Path) -> None:
    command = [sys.executable, "-m", "thinfs.cli.main", "dump", str(held)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141


@pytest.mark.parametrize("options", [(), ("--no-headers",), ("-o", EVERY_FIELD), ("-o", "SHARED,DEV")])
def test_a_list_is_thin_ls_s(pool: Path, options: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    assert printed(capfd, "ls", *options, pool) == answer("thin_ls", *options, pool).stdout


def test_a_list_of_a_metadata_snapshot_is_thin_ls_s(held: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        printed(capfd, "ls", "-m", "-o", EVERY_FIELD, held) == answer("thin_ls", "-m", "-o", EVERY_FIELD, held).stdout
    )


def test_sizes_for_people_are_thin_ls_s(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = (0, 1, 15, 127, 128, 129, 9 * 16, 63 * 16, 1023 * 16, 1024 * 16, 1535 * 16, 8192 * 16, 9 << 14, 8192 << 14)
    path = make_pool(tmp_path / "pool")
    with changing(path) as metadata:
        for dev_id, nr in enumerate({one + more for one in whole for more in (0, 1, 7, 8, 9, 15)}):
            metadata.create_thin(dev_id)
            thin = metadata.open_thin(dev_id)
            thin.mapped_blocks, thin.changed = nr, True
            metadata.close_thin(thin)
    assert printed(capfd, "ls", "-o", "DEV,MAPPED", path) == answer("thin_ls", "-o", "DEV,MAPPED", path).stdout


def test_an_unknown_field_is_named(held: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["ls", "-o", "DEV,FOO", str(held)]) == 1
    assert capfd.readouterr().err.startswith("thinfs ls: unknown field 'FOO'; there are DEV, MAPPED_BLOCKS")


@pytest.mark.parametrize("tool", ["check", "dump", "ls"])
def test_a_missing_file_is_one_line(tool: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([tool, str(tmp_path / "none")]) == 1
    assert capfd.readouterr() == ("", f"thinfs {tool}: {tmp_path}/none: no such file or device\n")


@pytest.mark.parametrize("tool", ["check", "dump", "ls"])
def test_a_pool_in_use_is_refused_but_its_metadata_snapshot_is_read(
    tool: str, held: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    holder = FileDevice(str(held))
    try:
        assert run([tool, str(held)]) == 1
        assert capfd.readouterr() == ("", f"thinfs {tool}: {held}: in use by another process\n")
        assert run([tool, "-m", str(held)]) == 0
    finally:
        holder.close()


@pytest.mark.parametrize("tool", ["check", "dump", "ls"])
def test_without_a_metadata_snapshot_there_is_none_to_read(
    tool: str, pools: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([tool, "-m", str(pools["docker"])]) == 1
    assert capfd.readouterr().err == f"thinfs {tool}: no current metadata snap\n"
