"""Text and pool held against each other, in the states that a power cut leaves: docs/reference/lvm.md, 8."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lvm.builder import World, lv_section, thin_section
from tests.lvm.reading import read_all
from thinfs.steps import drive

THICK = {"vg/thick", "vg/wide", "vg/ro-one"}
ALL = THICK | {"vg/one", "vg/two", "vg/guest"}

ChangedWorld = Callable[[Callable[[Any], None]], World]


def _text_ahead(world: World, **message: Any) -> None:
    """LVM has committed a text with a message."""
    world.pool["transaction_id"] = 4
    world.pool["message1"] = message


def _new_volume(world: World, device_id: int = 4) -> None:
    world.lvs["new"] = lv_section(thin_section(device_id, 3), number=11)
    _text_ahead(world, create="new")


def _create(metadata: Any) -> None:
    metadata.create_thin(4)


def _create_and_set(metadata: Any) -> None:
    metadata.create_thin(4)
    metadata.set_transaction_id(3, 4)


def test_a_text_that_was_not_committed_changes_nothing(world: World, tmp_path: Path) -> None:
    world.write(tmp_path)
    old = world.raw_text()
    _new_volume(world)
    for disk in world.disks.values():
        disk.write_area(0, old, slot1_offset=30720)
        new = world.raw_text() + b"\0"
        disk.data[4096 + 30720 : 4096 + 30720 + len(new)] = new
    read = read_all(world.store(tmp_path))
    assert (set(read.contents), read.refused, read.doubts) == (ALL, {}, [])


def test_a_message_that_was_not_sent_leaves_all_but_the_new_volume(world: World, tmp_path: Path) -> None:
    _new_volume(world)
    read = read_all(world.write(tmp_path))
    assert set(read.contents) == ALL
    assert read.refused == {
        "vg/new": "pool vg/pool: device 4 of vg/new: not created yet: LVM was interrupted, and does so at its next "
        "change"
    }
    assert read.doubts == ["pool vg/pool: a message is pending: LVM was interrupted, and has to finish it"]


def test_a_device_that_was_created_before_the_transaction_was_set_is_read(
    changed_world: ChangedWorld, tmp_path: Path
) -> None:
    world = changed_world(_create)
    _new_volume(world)
    read = read_all(world.write(tmp_path))
    assert set(read.contents) == ALL | {"vg/new"}
    assert read.contents["vg/new"] == bytes(10 * 65536)
    assert len(read.doubts) == 1


def test_a_message_that_was_sent_and_not_cleaned_up_leaves_all(changed_world: ChangedWorld, tmp_path: Path) -> None:
    world = changed_world(_create_and_set)
    _new_volume(world)
    assert set(read_all(world.write(tmp_path)).contents) == ALL | {"vg/new"}


def test_a_delete_that_was_not_sent_leaves_the_rest(world: World, tmp_path: Path) -> None:
    _text_ahead(world, delete=2)
    del world.lvs["two"]
    assert set(read_all(world.write(tmp_path)).contents) == ALL - {"vg/two"}


def test_a_device_of_another_transaction_is_another_volumes(changed_world: ChangedWorld, tmp_path: Path) -> None:
    """A delete that was not sent, and its id used again: the device is the old one still."""
    world = changed_world(lambda metadata: None)
    del world.lvs["two"]
    world.lvs["new"] = lv_section(thin_section(2, 3), number=11)
    _text_ahead(world, create="new")
    read = read_all(world.write(tmp_path))
    assert set(read.contents) == ALL - {"vg/two"}
    assert read.refused["vg/new"] == (
        "pool vg/pool: device 2 of vg/new: the pool created it in transaction 1, the text says 3: another volume's"
    )


def test_an_id_that_was_used_again_is_not_taken_for_the_old_volume(changed_world: ChangedWorld, tmp_path: Path) -> None:
    def recreate(metadata: Any) -> None:
        drive(metadata.commit())
        drive(metadata.delete_thin(2))
        metadata.create_thin(2)

    world = changed_world(recreate)
    read = read_all(world.write(tmp_path))
    assert set(read.contents) == ALL - {"vg/two"}
    assert "created it in transaction 3, the text says 1" in read.refused["vg/two"]


@pytest.mark.parametrize(("in_text", "message"), [(2, False), (2, True), (4, False), (5, True), (0, False), (99, True)])
def test_a_text_of_another_time_refuses_the_pool(world: World, tmp_path: Path, in_text: int, message: bool) -> None:
    world.pool["transaction_id"] = in_text
    if message:
        world.pool["message1"] = {"create": "one"}
    read = read_all(world.write(tmp_path))
    assert set(read.contents) == THICK
    assert read.refused["vg/pool"] == read.refused["vg/one"]
    assert read.refused["vg/one"].startswith(f"pool vg/pool: transaction_id is 3, while expected {in_text}: ")


def test_a_volume_whose_device_is_not_in_the_pool_is_refused(world: World, tmp_path: Path) -> None:
    world.lvs["one"]["segment1"]["device_id"] = 77
    read = read_all(world.write(tmp_path))
    assert set(read.contents) == ALL - {"vg/one"}
    assert read.refused["vg/one"] == "pool vg/pool: device 77 of vg/one is not in the pool"


def test_two_volumes_of_one_device_are_both_refused(world: World, tmp_path: Path) -> None:
    world.lvs["one"]["segment1"]["device_id"] = 2
    read = read_all(world.write(tmp_path))
    assert set(read.contents) == ALL - {"vg/one", "vg/two"}
    assert read.refused["vg/one"] == "VG vg/one: device 2 of pool is also two's"


def test_the_origin_of_a_pending_merge_is_of_the_past_and_the_snapshot_is_read(world: World, tmp_path: Path) -> None:
    world.lvs["two"]["segment1"]["merge"] = "one"
    world.lvs["two"]["status"].remove("VISIBLE")
    read = read_all(world.write(tmp_path))
    assert read.refused["vg/one"] == (
        "VG vg/one: two is merged into it at its next activation by LVM: its own device is of the past; read two"
    )
    assert "vg/two" not in read.refused


@pytest.mark.parametrize("message", [{"create": 1}, {"delete": "x"}, {"rename": "x"}, {}, 7])
def test_a_message_of_another_kind_refuses_the_pool(world: World, tmp_path: Path, message: Any) -> None:
    world.pool["message1"] = message
    assert set(read_all(world.write(tmp_path)).contents) == THICK
