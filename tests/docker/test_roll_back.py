"""Every state that a crash of Docker leaves, rolled back: what goes, what stays, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docker import crashes
from tests.docker.crashes import B1_HASH, CREATIONS, DELETIONS, NEW_DEVICE, NEW_HASH, digests, mappings_of, records
from thinfs.docker import roll_back as docker_roll_back
from thinfs.docker.directory import read_docker_directory
from thinfs.docker.pool import take_inventory
from thinfs.docker.roll_back import roll_back
from thinfs.errors import Busy, PermissionRefused
from thinfs.pool.metadata import PoolMetadata

State = Callable[[Path], None]


def rolled_back(docker: Path) -> list[str]:
    return roll_back(read_docker_directory(docker))


@pytest.mark.parametrize("state", CREATIONS, ids=lambda state: state.__name__)
def test_an_unfinished_creation_leaves_the_pool_and_the_records_as_before(docker: Path, state: State) -> None:
    before, names = mappings_of(docker), {path.name for path in records(docker).iterdir()}
    state(docker)
    done = rolled_back(docker)
    assert mappings_of(docker) == before
    assert {path.name for path in records(docker).iterdir()} == names - {"transaction-metadata"}
    assert done[-1].startswith("removed transaction-metadata")
    assert crashes.transaction_id(docker) == crashes.POOL_TRANSACTION
    assert take_inventory(read_docker_directory(docker)).problems == ()


@pytest.mark.parametrize("state", DELETIONS, ids=lambda state: state.__name__)
def test_an_unfinished_deletion_is_brought_to_its_end(docker: Path, state: State) -> None:
    before, names = mappings_of(docker), {path.name for path in records(docker).iterdir()}
    state(docker)
    rolled_back(docker)
    del before[28]
    assert mappings_of(docker) == before
    assert {path.name for path in records(docker).iterdir()} == names - {"transaction-metadata", B1_HASH}


@pytest.mark.parametrize("state", CREATIONS + DELETIONS, ids=lambda state: state.__name__)
def test_a_second_roll_back_changes_nothing(docker: Path, state: State) -> None:
    state(docker)
    rolled_back(docker)
    after_the_first = digests(docker)
    assert rolled_back(docker) == []
    assert digests(docker) == after_the_first


def test_a_roll_back_says_what_it_did(docker: Path) -> None:
    crashes.creation_recorded(docker)
    assert rolled_back(docker) == [
        "deleted device 29 from the pool",
        f"removed the record {NEW_HASH} of device 29",
        "removed transaction-metadata of transaction 40",
    ]


@pytest.mark.parametrize("state", [lambda docker: None, *crashes.INCONSISTENCIES])
def test_a_finished_transaction_is_left_alone(docker: Path, state: State) -> None:
    state(docker)
    before = digests(docker)
    assert rolled_back(docker) == []
    assert digests(docker) == before


@pytest.mark.parametrize("nr_removed", [0, 1])
def test_a_roll_back_that_is_broken_off_is_finished_by_the_next(
    docker: Path, monkeypatch: pytest.MonkeyPatch, nr_removed: int
) -> None:
    before = mappings_of(docker)
    crashes.creation_recorded(docker)
    remove, removed = docker_roll_back._remove, list[Path]()

    def crash(path: Path) -> bool:
        if len(removed) == nr_removed:
            raise KeyboardInterrupt
        removed.append(path)
        return remove(path)

    with monkeypatch.context() as patched:
        patched.setattr(docker_roll_back, "_remove", crash)
        with pytest.raises(KeyboardInterrupt):
            rolled_back(docker)
    assert (records(docker) / "transaction-metadata").exists()
    rolled_back(docker)
    assert mappings_of(docker) == before
    assert not (records(docker) / NEW_HASH).exists()
    assert not (records(docker) / "transaction-metadata").exists()


def test_a_device_that_a_finished_record_names_is_not_deleted(docker: Path) -> None:
    crashes.note(docker, 7, NEW_HASH)
    before = digests(docker)
    with pytest.raises(Busy, match=r"^device 7: the unfinished transaction's, and of the finished record 3018ebeb"):
        rolled_back(docker)
    assert digests(docker) == before


def test_a_record_of_another_device_than_the_note_says_is_refused(docker: Path) -> None:
    crashes.note(docker, NEW_DEVICE, B1_HASH)
    before = digests(docker)
    with pytest.raises(Busy, match=f"^device 29: the unfinished transaction's, but its record {B1_HASH} is of 28$"):
        rolled_back(docker)
    assert digests(docker) == before


def test_records_far_ahead_of_the_pool_are_not_taken_for_unfinished(docker: Path) -> None:
    """A pool from a backup: the records are newer, and nothing says that they are not complete."""
    crashes.new_record(docker, transaction=crashes.POOL_TRANSACTION + 9)
    (records(docker) / "transaction-metadata").write_bytes(b"{")
    assert rolled_back(docker) == ["removed transaction-metadata, which could not be read"]
    assert (records(docker) / NEW_HASH).exists()


def test_a_note_that_names_a_path_is_no_note(docker: Path) -> None:
    crashes.note(docker, NEW_DEVICE, "../../containers")
    assert rolled_back(docker) == ["removed transaction-metadata, which could not be read"]


def test_a_pool_that_needs_a_check_is_not_changed(docker: Path) -> None:
    crashes.creation_recorded(docker)
    crashes.change_metadata(docker, PoolMetadata.set_needs_check)
    before = digests(docker)
    with pytest.raises(PermissionRefused, match="needs_check is set"):
        rolled_back(docker)
    assert digests(docker) == before
    problems = take_inventory(read_docker_directory(docker)).problems
    assert problems[0] == "the pool's metadata needs a check (needs_check is set)"


def test_docker_s_files_stay_json(docker: Path) -> None:
    crashes.creation_recorded(docker)
    rolled_back(docker)
    for path in records(docker).iterdir():
        json.loads(path.read_text())
