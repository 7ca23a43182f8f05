"""What `thinfs docker list` knows of a directory: whose each thin is, what it takes, what does not fit."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docker import crashes
from tests.docker.crashes import CREATIONS, DELETIONS, INCONSISTENCIES, NEW_HASH, digests
from tests.thin_tools import answer
from thinfs.cli.docker import main
from thinfs.docker.directory import read_docker_directory
from thinfs.docker.pool import Inventory, Kind, Row, find_device, take_inventory
from thinfs.errors import BackingMissing, InvalidArgument

State = Callable[[Path], None]


def inventory(docker: Path) -> Inventory:
    return take_inventory(read_docker_directory(docker))


def row(docker: Path, device_id: int) -> Row:
    (found,) = [row for row in inventory(docker).rows if row.device_id == device_id]
    return found


def test_a_clean_directory_has_no_problems_and_every_thin_an_owner(docker: Path) -> None:
    taken = inventory(docker)
    assert (taken.problems, taken.pending, taken.in_use_by) == ((), None, None)
    kinds = [row.kind for row in taken.rows]
    assert (len(kinds), set(kinds)) == (17, {Kind.BASE, Kind.LAYER, Kind.CONTAINER, Kind.INIT})
    containers = {row.names: row.device_id for row in taken.rows if row.kind is Kind.CONTAINER}
    assert containers == {("c1",): 4, ("c2",): 7, ("c3",): 24, ("c4",): 26, ("b1",): 28}


def test_a_layer_has_the_names_of_its_images(docker: Path) -> None:
    assert row(docker, 5).names == ("thinfs-child:1 layer 2 of 2", "thinfs-child:2 layer 2 of 3")


def test_a_container_s_device_is_the_one_docker_inspect_shows(docker: Path) -> None:
    inspected = json.loads((Path(__file__).parents[1] / "data/docker-ext4-clean/inspect-c2.json").read_text())
    shown = (inspected[0] if isinstance(inspected, list) else inspected)["GraphDriver"]["Data"]
    record = find_device(read_docker_directory(docker), "c2")
    assert (str(record.device_id), str(record.size_bytes)) == (shown["DeviceId"], shown["DeviceSize"])


def test_used_and_exclusive_blocks_are_thin_ls_s(docker: Path) -> None:
    fields = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS"
    run = answer("thin_ls", "--no-headers", "-o", fields, crashes.metadata_file(docker))
    rows = [(row.device_id, row.usage) for row in inventory(docker).rows]
    ours = [(dev_id, usage.mapped_blocks, usage.exclusive_blocks) for dev_id, usage in rows if usage is not None]
    assert ours == [tuple(map(int, line.split())) for line in run.stdout.splitlines()]


def test_a_snapshot_just_taken_leaves_its_origin_nothing_exclusive(docker: Path) -> None:
    """The data blocks' reference counts are still 1: the two thins have one tree."""
    crashes.create_snap(docker, 100, 7)
    for device_id in (7, 100):
        usage = row(docker, device_id).usage
        assert usage is not None
        assert (usage.mapped_blocks, usage.exclusive_blocks) == (377, 0)


@pytest.mark.parametrize("state", CREATIONS + DELETIONS + INCONSISTENCIES, ids=lambda state: state.__name__)
def test_a_list_names_a_problem_and_writes_nothing(
    docker: Path, state: State, capsys: pytest.CaptureFixture[str]
) -> None:
    state(docker)
    before = digests(docker)
    assert main(["list", str(docker)]) == 0
    text = capsys.readouterr()
    assert main(["list", "--json", str(docker)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert digests(docker) == before
    assert text.err == ""
    problems = [line.removeprefix("problem: ") for line in text.out.splitlines() if line.startswith("problem: ")]
    assert document["problems"] == problems
    # Without a next_device_id Docker begins at 1 and passes over what its records have.
    assert bool(problems) == (state is not crashes.no_next_device_id)


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        (
            crashes.creation_in_pool,
            f"unfinished transaction 40, the pool's is 39: device 29 ({NEW_HASH});"
            " roll-back removes what is there of it",
        ),
        (crashes.creation_recorded_note_lost, "devicemapper/metadata/transaction-metadata: empty"),
        (crashes.creation_recorded_note_lost, f"device 29 ({NEW_HASH}): its transaction 40 was not finished"),
        (crashes.record_without_device, f"device 29 ({NEW_HASH}): has a record, is not in the pool"),
        (crashes.device_without_record, "device 77: in the pool, has no record; `remove` deletes it"),
        (crashes.stale_next_device_id, "next_device_id 20 is behind device 28: Docker did not stop cleanly"),
        (crashes.deletion_unrecorded, f"container b1: its device has no record ({crashes.B1_HASH})"),
        (crashes.half_written_files, "image/devicemapper/repositories.json: empty"),
    ],
)
def test_a_problem_is_one_line_that_names_the_thing(docker: Path, state: State, problem: str) -> None:
    state(docker)
    assert problem in inventory(docker).problems


def test_two_records_of_one_device_are_a_problem(docker: Path) -> None:
    crashes.write_record(docker, NEW_HASH, device_id=7, size=1, transaction_id=7)
    assert any(line.startswith("device 7: of two records, 3018ebeb") for line in inventory(docker).problems)


def test_a_record_with_an_impossible_number_is_damage(docker: Path) -> None:
    crashes.write_record(docker, NEW_HASH, device_id=1 << 24, size=1, transaction_id=7)
    assert (
        f"devicemapper/metadata/{NEW_HASH}: 16777216 is not a number from 0 to 16777215" in inventory(docker).problems
    )


def test_containers_without_their_config_are_known_by_their_id(docker: Path) -> None:
    crashes.half_written_files(docker)
    assert row(docker, 7).names == ("b473a1a2453a",)


@pytest.mark.parametrize("name", ["c2", "b473a1a2453a", "3018ebebe5816bfa"])
def test_a_container_is_found_by_name_by_id_and_by_record(docker: Path, name: str) -> None:
    assert find_device(read_docker_directory(docker), name).device_id == 7


def test_an_image_is_found_by_its_name(docker: Path) -> None:
    assert find_device(read_docker_directory(docker), "thinfs-child:2").device_id == 8


def test_an_unknown_container_is_refused_with_the_names_there_are(docker: Path) -> None:
    with pytest.raises(
        InvalidArgument, match=r"no container or image nope; there are b1, c1, c2, c3, c4, thinfs-base:1"
    ):
        find_device(read_docker_directory(docker), "nope")


def test_another_directory_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackingMissing):
        read_docker_directory(tmp_path)
    assert main(["list", str(tmp_path)]) == 1
    expected = f"thinfs docker list: {tmp_path}: not Docker's directory: no devicemapper/metadata\n"
    assert capsys.readouterr() == ("", expected)
