"""Block numbers and counts that a running kernel was seen to choose, after the same operations."""

import pytest

from tests.pool.metadata_image import commit, new_pool
from thinfs.blockdev import MemoryDevice
from thinfs.errors import InvalidArgument, NoSpace
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.thin_device import ThinDevice
from thinfs.steps import drive
from thinfs.units import METADATA_BLOCK_BYTES

Entry = tuple[int, int, int]  # bitmap, nr_free, none_free_before
Row = tuple[int, dict[int, int], int, int, Entry, int, Entry, int]


def row(metadata: PoolMetadata) -> Row:
    """Top-level root and contents, details root, data index root and entry, metadata index and entry, allocated."""
    superblock, objects = metadata.superblock, metadata.objects
    data, own = superblock.data_space_map_root, superblock.metadata_space_map_root
    data_entry, own_entry = objects.data_sm.ll.index.load(0), objects.metadata_sm.ll.index.load(0)
    return (
        superblock.data_mapping_root,
        {dev_id: root[0] for dev_id, root in objects.top.walk(superblock.data_mapping_root)},
        superblock.device_details_root,
        data.bitmap_root,
        (data_entry.blocknr, data_entry.nr_free, data_entry.none_free_before),
        own.bitmap_root,
        (own_entry.blocknr, own_entry.nr_free, own_entry.none_free_before),
        data.nr_allocated,
    )


def write(metadata: PoolMetadata, thin: ThinDevice, *thin_blocks: int) -> None:
    """Provision or break sharing, then one commit: what the worker does for bios that wait together."""
    for thin_block in thin_blocks:
        thin.insert_block(thin_block, metadata.alloc_data_block())
    commit(metadata)


def discard(metadata: PoolMetadata, thin: ThinDevice, begin: int, end: int) -> None:
    """With passdown: unmap, protect the data blocks, commit while they are discarded, let them go."""
    found = thin.find_mapped_range(begin, end)
    assert found is not None and found[:2] == (begin, end)
    data_begin, data_end = found[2], found[2] + end - begin
    drive(thin.remove_range(begin, end))
    metadata.inc_data_blocks(data_begin, data_end)
    commit(metadata)
    metadata.dec_data_blocks(data_begin, data_end)
    commit(metadata)


def test_the_worked_example_row_by_row() -> None:
    _, metadata = new_pool()
    assert row(metadata) == (6, {}, 7, 10, (8, 16320, 0), 11, (9, 16311, 1), 0)
    metadata.create_thin(0)
    commit(metadata)
    assert row(metadata) == (14, {0: 12}, 15, 10, (8, 16320, 0), 16, (13, 16310, 1), 0)
    origin = metadata.open_thin(0)
    write(metadata, origin, 0)
    write(metadata, origin, 1, 2, 3)
    assert row(metadata) == (26, {0: 27}, 28, 29, (24, 16316, 4), 30, (25, 16310, 1), 4)
    write(metadata, origin, 10)
    write(metadata, origin, 5)
    assert row(metadata) == (40, {0: 41}, 42, 43, (38, 16314, 6), 44, (39, 16310, 1), 6)
    discard(metadata, origin, 1, 3)
    write(metadata, origin, 20)
    assert row(metadata) == (58, {0: 59}, 60, 61, (56, 16315, 1), 62, (57, 16310, 1), 5)
    write(metadata, origin, 21)
    write(metadata, origin, 22)
    assert row(metadata) == (72, {0: 73}, 74, 75, (70, 16313, 1), 76, (71, 16310, 1), 7)
    metadata.create_snap(1, 0)
    commit(metadata)
    assert row(metadata) == (78, {0: 73, 1: 73}, 79, 75, (70, 16313, 1), 80, (77, 16310, 1), 7)
    write(metadata, origin, 0)
    assert origin.find_block(0) == (9, False)
    assert row(metadata) == (83, {0: 84, 1: 73}, 85, 86, (81, 16312, 1), 87, (82, 16309, 1), 8)
    snap = metadata.open_thin(1)
    write(metadata, snap, 0)
    assert snap.find_block(0) == (10, False)
    assert row(metadata) == (90, {0: 84, 1: 91}, 92, 93, (88, 16312, 0), 94, (89, 16309, 1), 8)
    write(metadata, snap, 3)
    assert row(metadata) == (97, {0: 84, 1: 98}, 99, 100, (95, 16311, 0), 101, (96, 16309, 1), 9)
    write(metadata, snap, 40)
    assert row(metadata) == (104, {0: 84, 1: 105}, 106, 107, (102, 16310, 0), 108, (103, 16309, 1), 10)
    discard(metadata, snap, 5, 6)
    discard(metadata, snap, 10, 11)
    metadata.close_thin(snap)
    drive(metadata.delete_thin(1))
    commit(metadata)
    assert row(metadata) == (133, {0: 84}, 131, 135, (134, 16313, 0), 136, (132, 16310, 1), 7)


@pytest.mark.parametrize(
    ("nr_metadata_blocks", "nr_data_blocks", "raw", "status"),
    [
        (16, 16384, 10, 11), (32, 16384, 10, 13), (256, 16384, 10, 35), (512, 16384, 10, 61),
        (1024, 16384, 10, 112), (2048, 4_915_200, 312, 516), (2048, 16384, 10, 214),
        (2048, 1_048_576, 73, 277), (4096, 1024, 9, 418), (4096, 16384, 10, 419), (4096, 1_048_576, 73, 482),
        (16384, 1024, 10, 1648), (16384, 16384, 11, 1649), (32768, 1024, 11, 3287), (32768, 16384, 12, 3288),
        (262_144, 1024, 25, 4121), (262_144, 16384, 26, 4122), (262_144, 1_048_576, 89, 4185),
        (3_932_160, 1024, 249, 4345),
    ],
)  # fmt: skip
def test_a_fresh_pool_uses_as_many_metadata_blocks_as_the_kernel_s(
    nr_metadata_blocks: int, nr_data_blocks: int, raw: int, status: int
) -> None:
    _, metadata = new_pool(nr_metadata_blocks, nr_data_blocks)
    assert metadata.nr_metadata_blocks == nr_metadata_blocks
    assert metadata.nr_metadata_blocks - metadata.raw_free_metadata_blocks == raw
    assert metadata.nr_metadata_blocks - metadata.nr_free_metadata_blocks == status
    assert (metadata.nr_data_blocks, metadata.nr_free_data_blocks) == (nr_data_blocks, nr_data_blocks)


@pytest.mark.parametrize("nr_blocks", [1, 2])
def test_a_metadata_device_of_one_or_two_blocks_is_invalid(nr_blocks: int) -> None:
    device = MemoryDevice(nr_blocks * METADATA_BLOCK_BYTES)
    with pytest.raises(InvalidArgument):
        PoolMetadata.open(device, 128)
    assert not any(device.read(0, device.size_bytes))


@pytest.mark.parametrize("nr_blocks", [3, 4, 7])
def test_a_metadata_device_of_three_blocks_and_more_runs_out_of_space_and_stays_blank(nr_blocks: int) -> None:
    device = MemoryDevice(nr_blocks * METADATA_BLOCK_BYTES)
    with pytest.raises(NoSpace):
        PoolMetadata.open(device, 128)
    assert not any(device.read(0, device.size_bytes))


@pytest.mark.parametrize("nr_blocks", [8, 9, 10])
def test_with_eight_to_ten_blocks_the_data_space_map_does_not_fit(nr_blocks: int) -> None:
    metadata = PoolMetadata.open(MemoryDevice(nr_blocks * METADATA_BLOCK_BYTES), 128)
    with pytest.raises(NoSpace):
        metadata.resize_data(16384)


@pytest.mark.parametrize("nr_blocks", [11, 12])
def test_with_eleven_or_twelve_blocks_the_commit_does_not_fit(nr_blocks: int) -> None:
    metadata = PoolMetadata.open(MemoryDevice(nr_blocks * METADATA_BLOCK_BYTES), 128)
    metadata.resize_data(16384)
    with pytest.raises(NoSpace):
        commit(metadata)
    metadata.abort()
    assert metadata.nr_data_blocks == 0


def test_a_metadata_device_beyond_255_bitmaps_is_used_up_to_there() -> None:
    metadata = PoolMetadata.open(MemoryDevice(17 << 30), 128)
    assert metadata.nr_metadata_blocks == 4_161_600


def leaf_counts(metadata: PoolMetadata, dev_id: int) -> list[int]:
    root = metadata.objects.top.lookup(metadata.transaction.mapping_root, dev_id)
    assert root is not None
    level = [root]
    while True:
        nodes = [metadata.objects.bm.read(block, BtreeNode) for block in level]
        if nodes[0].is_leaf:
            return [node.nr_entries for node in nodes]
        level = [child for node in nodes for child in node.live_values()]


def test_ascending_and_descending_inserts_leave_the_kernel_s_leaves() -> None:
    _, metadata = new_pool(4096, 16384)
    for dev_id in (0, 1):
        metadata.create_thin(dev_id)
    up, down = metadata.open_thin(0), metadata.open_thin(1)
    write(metadata, up, *range(2000))
    write(metadata, down, *range(1200, -1, -1))
    assert leaf_counts(metadata, 0) == [248] * 7 + [126, 138]
    assert leaf_counts(metadata, 1) == [245, 221, 245, 245, 245]


def test_freed_data_blocks_are_not_reused_before_the_commit_and_the_search_goes_on_from_the_cursor() -> None:
    _, metadata = new_pool(1024, 8)
    metadata.create_thin(0)
    thin = metadata.open_thin(0)
    write(metadata, thin, *range(6))
    drive(thin.remove_range(1, 3))
    assert metadata.nr_free_data_blocks == 4
    assert [metadata.alloc_data_block() for _ in range(2)] == [6, 7]
    with pytest.raises(NoSpace):
        metadata.alloc_data_block()
    commit(metadata)
    assert [metadata.alloc_data_block() for _ in range(2)] == [1, 2]


def test_metadata_growth_puts_its_bitmaps_at_the_start_of_the_new_area_and_the_next_block_at_the_old_end() -> None:
    device, metadata = new_pool(256, 1024)
    device.resize(40_000 * METADATA_BLOCK_BYTES)
    assert metadata.nr_usable_device_blocks == 40_000
    metadata.resize_metadata(40_000)
    commit(metadata)
    superblock = metadata.superblock
    assert superblock.metadata_nr_blocks == 256
    assert superblock.metadata_space_map_root.nr_blocks == metadata.nr_metadata_blocks == 40_000
    entries = [metadata.objects.metadata_sm.ll.index.load(i).blocknr for i in range(3)]
    assert all(block >= 256 for block in entries)
    assert superblock.metadata_space_map_root.bitmap_root >= 256
    assert metadata.objects.tm.new(BtreeNode.blank(2, 8)) >= 256
