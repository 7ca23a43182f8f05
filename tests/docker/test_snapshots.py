"""Snapshots beside Docker's devices: their ids and names, what they leave alone, and pools in use."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker import crashes
from tests.docker.crashes import digests, mappings_of, metadata_file, records
from thinfs.blockdev import FileDevice
from thinfs.cli.docker import main
from thinfs.docker import snapshot as docker_snapshot
from thinfs.docker.directory import read_docker_directory
from thinfs.docker.pool import Kind, find_device, take_inventory
from thinfs.docker.roll_back import roll_back
from thinfs.docker.snapshot import Snapshot, read_snapshots, remove_snapshot, snapshots_file, take_snapshot
from thinfs.errors import Busy, Exists, InvalidArgument, NoSuchThin, PermissionRefused, ThinfsError
from thinfs.pool.metadata import PoolMetadata


def snapshot(docker: Path, container: str = "c2", name: str | None = None) -> Snapshot:
    directory = read_docker_directory(docker)
    return take_snapshot(directory, find_device(directory, container), name)


def remove(docker: Path, name: str) -> str:
    return remove_snapshot(read_docker_directory(docker), name)


def test_a_snapshot_has_the_container_s_mappings_and_an_id_from_1024(docker: Path) -> None:
    made = snapshot(docker)
    assert (made.device_id, made.name, made.size_bytes, made.origin_device_id) == (1024, "c2-1024", 1 << 27, 7)
    after = mappings_of(docker)
    assert after[1024] == after[7]


def test_a_snapshot_leaves_docker_s_files_and_the_transaction_id_alone(docker: Path) -> None:
    before = digests(docker)
    snapshot(docker)
    changed = {name for name, digest in digests(docker).items() if before.get(name) != digest}
    assert changed == {"devicemapper/devicemapper/metadata", "devicemapper/thinfs-snapshots.json"}
    assert crashes.transaction_id(docker) == crashes.POOL_TRANSACTION


def test_a_removed_snapshot_leaves_docker_s_mappings_and_no_file(docker: Path) -> None:
    before = mappings_of(docker)
    snapshot(docker, name="mine")
    assert remove(docker, "mine") == "removed device 1024, snapshot mine"
    assert mappings_of(docker) == before
    assert not snapshots_file(read_docker_directory(docker)).exists()


def test_snapshots_take_one_id_after_the_other(docker: Path) -> None:
    assert [snapshot(docker, name).device_id for name in ("c1", "thinfs-base:1", "base")] == [1024, 1025, 1026]


@pytest.mark.parametrize("highest", ["next_device_id", "record", "note"])
def test_an_id_is_above_all_that_docker_knows(docker: Path, highest: str) -> None:
    if highest == "next_device_id":
        crashes.write_record(docker, "deviceset-metadata", next_device_id=5000)
    elif highest == "record":
        crashes.write_record(docker, "cd" * 32, device_id=5000, size=1, transaction_id=1)
    else:
        crashes.note(docker, 5000, "cd" * 32)
    assert snapshot(docker).device_id == 5001


def test_the_last_id_docker_has_leaves_none(docker: Path) -> None:
    crashes.write_record(docker, "deviceset-metadata", next_device_id=(1 << 24) - 1)
    with pytest.raises(InvalidArgument, match="no device id above 16777215 is free"):
        snapshot(docker)


def test_a_list_shows_a_snapshot_by_its_name(docker: Path) -> None:
    snapshot(docker, name="mine")
    taken = take_inventory(read_docker_directory(docker))
    assert [(row.kind, row.names, row.size_bytes) for row in taken.rows if row.device_id == 1024] == [
        (Kind.SNAPSHOT, ("mine",), 1 << 27)
    ]
    assert taken.problems == ()


@pytest.mark.parametrize("name", ["../mine", ".mine", "-mine"])
def test_a_name_that_is_none_is_refused_and_nothing_written(docker: Path, name: str) -> None:
    before = digests(docker)
    with pytest.raises(InvalidArgument):
        snapshot(docker, name=name)
    assert digests(docker) == before


def test_a_name_is_given_once(docker: Path) -> None:
    snapshot(docker, name="mine")
    with pytest.raises(Exists, match="snapshot mine exists already"):
        snapshot(docker, name="mine")


def test_docker_s_devices_are_not_removed(docker: Path) -> None:
    before = digests(docker)
    with pytest.raises(PermissionRefused, match=r"^device 7 is Docker's"):
        remove(docker, "7")
    assert digests(docker) == before


def test_a_device_that_only_the_pool_knows_is_removed_by_its_id(docker: Path) -> None:
    before = mappings_of(docker)
    crashes.device_without_record(docker)
    assert remove(docker, "77") == "removed device 77"
    assert mappings_of(docker) == before
    with pytest.raises(NoSuchThin, match="thin 77 does not exist"):
        remove(docker, "77")


def test_the_device_of_an_unfinished_transaction_is_not_snapshotted(docker: Path) -> None:
    crashes.creation_recorded(docker)
    with pytest.raises(Busy, match="its transaction was not finished; roll back first"):
        snapshot(docker, crashes.NEW_HASH)


def test_a_roll_back_keeps_snapshots(docker: Path) -> None:
    snapshot(docker)
    crashes.creation_recorded(docker)
    roll_back(read_docker_directory(docker))
    assert 1024 in mappings_of(docker)
    assert list(read_snapshots(read_docker_directory(docker))) == ["c2-1024"]


def test_a_crash_before_the_commit_leaves_a_name_that_remove_takes_away(
    docker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = docker_snapshot._write_snapshots, list[int]()

    def crash(*arguments: object) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(1)
        write(*arguments)  # type: ignore[arg-type]

    def no_commit(self: PoolMetadata) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(docker_snapshot, "_write_snapshots", crash)
        patched.setattr(PoolMetadata, "commit", no_commit)
        with pytest.raises(KeyboardInterrupt):
            snapshot(docker)
    problems = take_inventory(read_docker_directory(docker)).problems
    assert problems == ("snapshot c2-1024: its device 1024 is not in the pool",)
    remove(docker, "c2-1024")
    assert take_inventory(read_docker_directory(docker)).problems == ()


def test_a_file_of_names_that_cannot_be_read_is_a_problem_and_is_not_overwritten(docker: Path) -> None:
    path = snapshots_file(read_docker_directory(docker))
    path.write_text('{"mine": 3}')
    assert str(path) in take_inventory(read_docker_directory(docker)).problems[0]
    with pytest.raises(ThinfsError):
        snapshot(docker)
    assert json.loads(path.read_text()) == {"mine": 3}


# -- a pool in use


CHANGES = (["snapshot", "c2"], ["roll-back"], ["remove", "77"])


@pytest.fixture
def loop_device(docker: Path) -> Iterator[str]:
    """As Docker has its metadata file while it runs."""
    if os.geteuid() != 0:
        pytest.skip("needs root: a loop device")
    run = subprocess.run(
        ["losetup", "--find", "--show", metadata_file(docker)], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if run.returncode != 0:
        pytest.skip(f"no loop device: {run.stderr.strip()}")
    path = run.stdout.strip()
    try:
        yield path
    finally:
        subprocess.run(["losetup", "--detach", path], check=True, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[0])
def test_a_change_of_a_pool_on_a_loop_device_is_refused_in_one_line(
    docker: Path, loop_device: str, change: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(docker)
    assert main([change[0], str(docker), *change[1:]]) == 1
    why = f"{metadata_file(docker)}: in use by {loop_device}; stop Docker first"
    assert capsys.readouterr() == ("", f"thinfs docker {change[0]}: {why}\n")
    assert digests(docker) == before


def test_a_pool_in_use_is_listed_and_its_user_named(
    docker: Path, loop_device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(docker)
    assert main(["list", str(docker)]) == 0
    assert f"in use by {loop_device}: as of its last commit\n" in capsys.readouterr().out
    assert digests(docker) == before


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change[0])
def test_a_change_of_a_pool_that_another_thinfs_has_is_refused_in_one_line(
    docker: Path, change: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    holder = FileDevice(str(metadata_file(docker)))
    try:
        assert main([change[0], str(docker), *change[1:]]) == 1
        why = f"{metadata_file(docker)}: in use by another process of thinfs"
        assert capsys.readouterr() == ("", f"thinfs docker {change[0]}: {why}\n")
        assert main(["list", str(docker)]) == 0
    finally:
        holder.close()


def test_the_records_have_no_file_of_ours(docker: Path) -> None:
    """Docker takes every file in there for a device."""
    before = {path.name for path in records(docker).iterdir()}
    snapshot(docker)
    assert {path.name for path in records(docker).iterdir()} == before
