"""What PoolMetadata promises its pool: errors and their words, modes, thresholds, commits, a real Docker pool."""

import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.pool.metadata_image import all_mappings, commit, copy_of, new_pool, thin_check
from tests.thin_tools import answer
from thinfs.blockdev import FileDevice, MemoryDevice
from thinfs.errors import (
    BadMetadata,
    Busy,
    Exists,
    InvalidArgument,
    IOFailed,
    NoSuchThin,
    PermissionRefused,
    ThinfsError,
    WrongBlock,
)
from thinfs.ondisk.superblock import Superblock
from thinfs.pool.metadata import PoolMetadata
from thinfs.steps import drive

DOCKER_POOL = Path(__file__).parents[1] / "data/docker-ext4-clean/clean.tar.xz"


def image_bytes(device: MemoryDevice) -> bytes:
    return device.read(0, device.size_bytes)


def test_messages_are_refused_in_the_kernel_s_words() -> None:
    _, metadata = new_pool()
    metadata.create_thin(1)
    commit(metadata)
    with pytest.raises(Exists, match="create_thin 1: thin 1 exists already"):
        metadata.create_thin(1)
    with pytest.raises(Exists, match="create_snap 1 9: thin 1 exists already"):
        metadata.create_snap(1, 9)
    with pytest.raises(NoSuchThin, match="create_snap 4 3: thin 3 does not exist"):
        metadata.create_snap(4, 3)
    with pytest.raises(NoSuchThin, match="delete 3: thin 3 does not exist"):
        drive(metadata.delete_thin(3))
    with pytest.raises(NoSuchThin, match="thin 3 does not exist"):
        metadata.open_thin(3)
    thin = metadata.open_thin(1)
    assert metadata.open_thin(1) is thin
    metadata.close_thin(thin)
    with pytest.raises(Busy, match="delete 1: thin 1 is open"):
        drive(metadata.delete_thin(1))
    with pytest.raises(InvalidArgument, match="mismatched transaction id"):
        metadata.set_transaction_id(1, 2)
    metadata.set_transaction_id(0, 2**64 - 1)
    commit(metadata)
    assert metadata.transaction_id == 2**64 - 1


def test_opening_is_refused_with_the_kernel_s_errnos_and_writes_nothing() -> None:
    device, _ = new_pool(64)
    good = image_bytes(device)

    def refused(offset: int, data: bytes, error: type[ThinfsError], size: int = 128) -> None:
        broken = copy_of(device)
        broken.write(offset, data)
        before = image_bytes(broken)
        with pytest.raises(ThinfsError) as caught:
            PoolMetadata.open(broken, size)
        assert type(caught.value) is error
        assert image_bytes(broken) == before

    refused(0, good[:4096], InvalidArgument, size=256)
    refused(8, b"\5", WrongBlock)
    refused(32, b"\5", BadMetadata)
    refused(0, b"\5", BadMetadata)
    superblock = Superblock.parse(good[:4096], 0)
    refused(0, replace(superblock, incompat_flags=1).build(0), InvalidArgument)
    refused(0, replace(superblock, compat_ro_flags=1).build(0), InvalidArgument)
    refused(superblock.metadata_space_map_root.bitmap_root * 4096, b"\5", BadMetadata)
    with pytest.raises(PermissionRefused):
        PoolMetadata.open(MemoryDevice(1 << 20), 128, format_allowed=False)


def test_another_data_block_size_is_named() -> None:
    device, _ = new_pool()
    text = "changing the data block size (from 128 to 256) is not supported"
    with pytest.raises(InvalidArgument, match=re.escape(text)):
        PoolMetadata.open(device, 256)


def test_a_pool_that_is_only_looked_at_is_not_written() -> None:
    device, first = new_pool()
    first.create_thin(0)
    commit(first)
    before, nr_flushes = image_bytes(device), device.nr_flushes
    metadata = PoolMetadata.open(device, 128)
    metadata.close_thin(metadata.open_thin(0))
    commit(metadata)
    assert (image_bytes(device), device.nr_flushes) == (before, nr_flushes + 1), "the flush at the opening"


def test_a_commit_that_changes_nothing_writes_the_same_superblock_and_allocates_nothing() -> None:
    device, metadata = new_pool()
    before = image_bytes(device)
    commit(metadata)
    assert image_bytes(device) == before


def test_a_commit_flushes_the_data_device_first_and_writes_the_superblock_last() -> None:
    order: list[str] = []

    class Watched(MemoryDevice):
        def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            order.append("superblock" if offset == 0 else "blocks")
            super().write(offset, data)

        def flush(self) -> None:
            order.append("flush")

    class WatchedData(MemoryDevice):
        def flush(self) -> None:
            order.append("data")

    metadata = PoolMetadata.open(Watched(1 << 20), 128, data=WatchedData(1 << 20))
    assert order[-3:] == ["flush", "superblock", "flush"]
    assert "data" not in order
    order.clear()
    metadata.create_thin(0)
    assert order == []
    commit(metadata)
    assert [one for i, one in enumerate(order) if not i or one != order[i - 1]] == [
        "data", "blocks", "flush", "superblock", "flush",
    ]  # fmt: skip


def test_mappings_can_be_read_while_a_commit_s_writes_are_on_their_way() -> None:
    _, metadata = new_pool()
    metadata.create_thin(0)
    thin = metadata.open_thin(0)
    thin.insert_block(7, metadata.alloc_data_block())
    for job in metadata.commit():
        assert thin.find_block(7) == (0, False)
        assert job is not None
        job.start()
    assert thin.find_block(7) == (0, False)
    assert not thin.changed and not metadata.changed_this_transaction


def test_read_only_metadata_refuses_changes_with_eperm_and_reads_on() -> None:
    _, metadata = new_pool()
    metadata.create_thin(0)
    commit(metadata)
    thin = metadata.open_thin(0)
    metadata.set_read_only()
    changes: list[Callable[[], object]] = [
        lambda: metadata.create_thin(1),
        lambda: metadata.alloc_data_block(),
        lambda: thin.insert_block(0, 0),
        lambda: drive(thin.remove_range(0, 1)),
        lambda: commit(metadata),
    ]
    for change in changes:
        with pytest.raises(PermissionRefused, match="read-only"):
            change()
    assert thin.find_block(0) is None
    metadata.set_read_write()
    metadata.create_thin(1)


def test_needs_check_reaches_the_device_and_keeps_the_last_commit() -> None:
    device, metadata = new_pool()
    metadata.create_thin(0)
    commit(metadata)
    metadata.create_thin(1)
    metadata.abort()
    metadata.set_needs_check()
    drive(metadata.write_flag())
    reopened = PoolMetadata.open(copy_of(device.stable), 128)
    assert reopened.needs_check
    assert [dev_id for dev_id, _ in reopened.devices()] == [0]


def test_an_abort_marks_open_devices_that_had_changed_and_keeps_their_counters() -> None:
    _, metadata = new_pool()
    for dev_id in (0, 1):
        metadata.create_thin(dev_id)
    commit(metadata)
    changed, untouched = metadata.open_thin(0), metadata.open_thin(1)
    changed.insert_block(0, metadata.alloc_data_block())
    metadata.abort()
    assert (changed.aborted_with_changes, untouched.aborted_with_changes) == (True, False)
    assert changed.mapped_blocks == 1
    assert changed.find_block(0) is None
    assert metadata.nr_free_data_blocks == metadata.nr_data_blocks


def test_a_device_whose_creation_was_aborted_maps_nothing() -> None:
    _, metadata = new_pool()
    metadata.create_thin(0)
    thin = metadata.open_thin(0)
    thin.insert_block(0, metadata.alloc_data_block())
    metadata.abort()
    assert thin.find_block(0) is None
    assert thin.find_mapped_range(0, 9) is None
    with pytest.raises(NoSuchThin):
        thin.highest_mapped_block()
    with pytest.raises(NoSuchThin):
        drive(thin.remove_range(0, 1))


def test_an_abort_that_cannot_reopen_leaves_nothing_usable() -> None:
    device, metadata = new_pool()
    metadata.create_thin(0)
    commit(metadata)
    thin = metadata.open_thin(0)
    device.write(0, b"\xff" * 4096)
    with pytest.raises(BadMetadata):
        metadata.abort()
    uses: list[Callable[[], object]] = [
        lambda: thin.find_block(0),
        lambda: metadata.create_thin(1),
        lambda: commit(metadata),
    ]
    for use in uses:
        with pytest.raises(InvalidArgument):
            use()


def test_a_failed_write_of_a_commit_is_raised_and_an_abort_recovers() -> None:
    class Failing(MemoryDevice):
        broken = False

        def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            if self.broken:
                raise IOFailed("metadata: no more")
            super().write(offset, data)

    device = Failing(1 << 20)
    metadata = PoolMetadata.open(device, 128)
    metadata.create_thin(0)
    device.broken = True
    with pytest.raises(IOFailed):
        commit(metadata)
    device.broken = False
    metadata.abort()
    assert list(metadata.devices()) == []


def test_the_threshold_fires_on_the_way_down_only_and_is_forgotten_by_an_abort() -> None:
    _, metadata = new_pool(1024)
    fired: list[int] = []
    threshold = metadata.raw_free_metadata_blocks - 3
    metadata.set_metadata_threshold(threshold, lambda: fired.append(metadata.raw_free_metadata_blocks))
    for dev_id in range(3):
        metadata.create_thin(dev_id)
    assert fired == [threshold]
    metadata.abort()
    for dev_id in range(10):
        metadata.create_thin(dev_id)
    assert fired == [threshold]


def test_a_metadata_snapshot_holds_the_trees_until_it_is_released(tmp_path: Path) -> None:
    device, metadata = new_pool()
    metadata.create_thin(0)
    thin = metadata.open_thin(0)
    for thin_block in range(300):
        thin.insert_block(thin_block, metadata.alloc_data_block())
    commit(metadata)
    used = metadata.nr_metadata_blocks - metadata.raw_free_metadata_blocks
    with pytest.raises(InvalidArgument, match="none is held"):
        drive(metadata.release_metadata_snap())
    drive(metadata.reserve_metadata_snap())
    held = Superblock.parse(device.read(metadata.held_root * 4096, 4096), metadata.held_root)
    assert (held.held_root, held.data_space_map_root.nr_blocks) == (0, 0)
    with pytest.raises(Busy):
        drive(metadata.reserve_metadata_snap())
    drive(thin.remove_range(0, 200))
    commit(metadata)
    assert metadata.nr_data_blocks - metadata.nr_free_data_blocks == 300
    old = {key: value[0] for key, value in metadata.objects.top.walk(held.data_mapping_root)}
    assert len(list(metadata.objects.bottom.walk(old[0]))) == 300
    thin_check(device.stable, tmp_path)
    drive(metadata.release_metadata_snap())
    assert metadata.held_root == 0
    assert metadata.nr_data_blocks - metadata.nr_free_data_blocks == 100
    assert metadata.nr_metadata_blocks - metadata.raw_free_metadata_blocks <= used
    thin_check(device.stable, tmp_path)


def test_a_snapshot_shares_until_either_side_is_written() -> None:
    _, metadata = new_pool()
    metadata.create_thin(0)
    origin = metadata.open_thin(0)
    origin.insert_block(0, metadata.alloc_data_block())
    origin.insert_block(1, metadata.alloc_data_block())
    metadata.create_snap(1, 0)
    snap = metadata.open_thin(1)
    assert (metadata.time, origin.snapshotted_time, snap.snapshotted_time, snap.creation_time) == (1, 1, 1, 1)
    assert origin.find_block(0) == snap.find_block(0) == (0, True)
    origin.insert_block(0, metadata.alloc_data_block())
    assert origin.find_block(0) == (2, False)
    assert snap.find_block(0) == (0, True)
    assert [metadata.data_block_count(block) for block in range(3)] == [1, 2, 1]
    assert metadata.data_block_is_shared(1)
    assert list(origin.mapped_runs(0, 100)) == [(0, 1, 2, False), (1, 2, 1, True)]
    assert list(snap.mapped_runs(0, 100)) == [(0, 2, 0, True)]
    assert snap.find_mapped_range(1, 2) == (1, 2, 1, True)
    assert snap.find_mapped_range(2, 99) is None
    assert snap.highest_mapped_block() == 1


def test_the_metadata_of_a_pool_that_docker_made_reads_as_thin_dump_says(tmp_path: Path) -> None:
    with tarfile.open(DOCKER_POOL) as archive:
        member = archive.extractfile("devicemapper/devicemapper/metadata")
        assert member is not None
        (tmp_path / "metadata").write_bytes(member.read())
    xml = answer("thin_dump", tmp_path / "metadata").stdout
    wanted: dict[int, dict[int, int]] = {}
    details: dict[int, tuple[int, ...]] = {}
    for line in xml.splitlines():
        name = line.split()[0].lstrip("<")
        numbers = [int(number) for number in re.findall(r'="(\d+)"', line)]
        if name == "device":
            mappings = wanted[numbers[0]] = {}
            details[numbers[0]] = tuple(numbers[1:])
        elif name == "range_mapping":
            mappings.update({numbers[0] + i: numbers[1] + i for i in range(numbers[2])})
        elif name == "single_mapping":
            mappings[numbers[0]] = numbers[1]
    device = FileDevice(str(tmp_path / "metadata"), read_only=True)
    try:
        metadata = PoolMetadata.open(device, 128)
        assert (metadata.transaction_id, metadata.time, len(wanted)) == (39, 27, 17)
        assert all_mappings(metadata) == wanted
        assert {
            dev_id: (one.mapped_blocks, one.transaction_id, one.creation_time, one.snapshotted_time)
            for dev_id, one in metadata.devices()
        } == details
    finally:
        device.close()
