"""Mechanisms that histories of a whole pool reach rarely: cache, ring, trees against dicts, searches against lists."""

from collections.abc import Callable, Generator, Iterator
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thinfs.bio import Immediate
from thinfs.blockdev import MemoryDevice
from thinfs.errors import BadMetadata, InvalidArgument, NoMemory
from thinfs.ondisk.btree_node import LEAF_NODE, BtreeNode
from thinfs.ondisk.space_map import Bitmap
from thinfs.persistent import btree_remove
from thinfs.persistent.block_manager import BlockManager, write_and_flush
from thinfs.persistent.btree import Btree, ValueType, runs
from thinfs.persistent.space_map import _first_free
from thinfs.persistent.space_map_disk import DiskSpaceMap
from thinfs.persistent.space_map_metadata import RING_ENTRIES, MetadataSpaceMap
from thinfs.persistent.transaction_manager import TransactionManager
from thinfs.steps import do_now, drive
from thinfs.units import ENTRIES_PER_BITMAP, METADATA_BLOCK_BYTES


def _to_the_end(removing: Generator[int, None, tuple[int, int, int]]) -> tuple[int, int, int]:
    while True:
        try:
            next(removing)
        except StopIteration as stop:
            result: tuple[int, int, int] = stop.value
            return result


def new_transaction(nr_blocks: int = 4000) -> tuple[TransactionManager, MetadataSpaceMap]:
    tm = TransactionManager(BlockManager(MemoryDevice(nr_blocks * METADATA_BLOCK_BYTES)))
    return tm, MetadataSpaceMap.create(tm, nr_blocks)


def commit(tm: TransactionManager, sm: MetadataSpaceMap) -> None:
    sm.commit()
    device = tm.bm.device
    assert isinstance(device, MemoryDevice)
    do_now(write_and_flush(Immediate(device), tm.bm.encode_dirty()))
    tm.bm.written()
    tm.committed()


def test_a_block_in_use_as_one_kind_cannot_be_read_as_another() -> None:
    tm, _ = new_transaction()
    block = tm.new(Bitmap.blank())
    with pytest.raises(InvalidArgument, match=f"metadata block {block}: in use as Bitmap, read as BtreeNode"):
        tm.bm.read(block, BtreeNode)


def test_clean_blocks_are_bounded_and_dirty_ones_are_kept() -> None:
    device = MemoryDevice(1000 * METADATA_BLOCK_BYTES)
    bm = BlockManager(device, capacity=10)
    for block in range(500):
        bm.put(block, BtreeNode.blank(LEAF_NODE, 8))
    assert bm.nr_dirty == 500
    do_now(write_and_flush(Immediate(device), bm.encode_dirty()))
    bm.written()
    assert bm.nr_dirty == 0
    for block in range(500):
        bm.read(block, BtreeNode)
        assert len(bm.hot) <= 11
    dirty = BtreeNode.blank(LEAF_NODE, 8)
    bm.put(3, dirty)
    for block in range(100, 200):
        bm.read(block, BtreeNode)
    assert bm.read(3, BtreeNode) is dirty


def test_neighbouring_dirty_blocks_become_one_write() -> None:
    bm = BlockManager(MemoryDevice(100 * METADATA_BLOCK_BYTES))
    for block in (7, 5, 6, 20):
        bm.put(block, Bitmap.blank())
    assert [(offset // 4096, len(data) // 4096) for offset, data in bm.encode_dirty()] == [(5, 3), (20, 1)]


def test_a_full_ring_is_no_memory() -> None:
    _, sm = new_transaction()
    sm._busy = True
    for _ in range(RING_ENTRIES):
        sm.inc(5, 6)
    with pytest.raises(NoMemory):
        sm.inc(5, 6)


def test_what_waits_in_the_ring_counts_before_it_is_applied() -> None:
    tm, sm = new_transaction()
    block = tm.new(Bitmap.blank())
    assert (sm.count(block), sm.is_shared(block)) == (1, False)
    sm._busy = True
    sm.inc(block, block + 1)
    assert (sm.count(block), sm.is_shared(block)) == (2, True)
    sm._busy = False
    sm.inc(block, block + 1)
    assert (sm.count(block), sm.is_shared(block)) == (3, True)


def test_a_shadow_is_made_once_a_transaction_and_the_original_is_kept_until_then() -> None:
    tm, sm = new_transaction()
    block = tm.new(Bitmap.blank())
    assert tm.shadow(block, Bitmap)[0] == block
    commit(tm, sm)
    copy, contents, shared = tm.shadow(block, Bitmap)
    assert (copy != block, shared) == (True, False)
    contents.entries[0] = 0xFF
    assert tm.bm.read(block, Bitmap).entries[0] == 0
    assert tm.shadow(copy, Bitmap)[0] == copy
    assert (sm.count(block), sm.count(copy)) == (0, 1)


def tree_operations(random: Random) -> Iterator[tuple[str, int, int]]:
    for _ in range(40):
        kind = random.choice(("insert", "insert", "insert", "remove", "remove range", "commit", "share"))
        yield kind, random.randrange(1500), random.choice((1, 5, 60, 300))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("value_size", [4, 8, 16, 24])
def test_a_tree_is_a_sorted_dict(value_size: int, seed: int) -> None:
    tm, sm = new_transaction()
    tree = Btree(tm, ValueType(value_size))
    nr_words = max(value_size // 8, 1)
    root, model, shared = tree.empty(), dict[int, int](), list[tuple[int, dict[int, int]]]()
    for kind, begin, nr in tree_operations(Random(seed)):
        if kind == "insert":
            for key in range(begin, begin + nr):
                root, is_new = tree.insert(root, (key,), *(key + word + nr for word in range(nr_words)))
                assert is_new == (key not in model)
                model[key] = key + nr
        elif kind == "remove":
            for key in range(begin, begin + nr):
                root, found = btree_remove.remove(tree, root, key)
                assert found == (model.pop(key, None) is not None)
        elif kind == "remove range":
            run = next((key for key in sorted(model) if key >= begin), None)
            if run is not None:
                root, nr_removed, _ = _to_the_end(btree_remove.remove_leaves(tree, root, run, run + nr))
                wanted = [key for key in sorted(model) if run <= key < run + nr][:nr_removed]
                assert wanted and wanted == sorted(wanted)
                for key in wanted:
                    del model[key]
        elif kind == "commit":
            commit(tm, sm)
        else:
            tm.inc(root)
            shared.append((root, dict(model)))
        check_tree(tree, root, model)
    for old_root, old_model in shared:
        check_tree(tree, old_root, old_model)
    for block, _ in [*shared, (root, model)]:
        drive(tree.delete(block))
    commit(tm, sm)
    assert sm.nr_blocks - sm.nr_free == 4  # superblock, index, overflow tree, bitmap


def check_tree(tree: Btree, root: int, model: dict[int, int]) -> None:
    assert {key: words[0] for key, words in tree.walk(root)} == model
    assert tree.highest_key(root) == max(model, default=None)
    for key in (0, 450, 900):
        assert tree.lookup(root, key) == model.get(key)
        following = min((one for one in model if one >= key), default=None)
        position = tree.next_position(root, key)
        assert following == (None if position is None else position[0].keys[position[1]])


@given(st.lists(st.integers(0, 8)))
def test_runs_cover_the_numbers_in_order(numbers: list[int]) -> None:
    found = list(runs(numbers))
    assert [one for begin, end in found for one in range(begin, end)] == numbers
    assert all(one[1] != other[0] for one, other in pairwise(found))


@given(st.lists(st.integers(0, 3), min_size=64, max_size=64), st.integers(0, 64), st.integers(0, 64))
def test_the_search_finds_the_first_zero_pair(pairs: list[int], start: int, stop: int) -> None:
    entries = bytearray(16)
    for bit, pair in enumerate(pairs):
        entries[bit >> 2] |= pair << 2 * (bit & 3)
    wanted = next((bit for bit in range(start, stop) if not pairs[bit]), None)
    assert _first_free(entries, start, stop) == wanted


COUNT_CHANGES = st.lists(
    st.tuples(st.sampled_from((1, 1, -1)), st.integers(0, 260), st.integers(1, 260)), min_size=1, max_size=25
)


@settings(max_examples=80, deadline=None)
@given(COUNT_CHANGES)
def test_counts_of_ranges_are_what_single_steps_would_make_them(changes: list[tuple[int, int, int]]) -> None:
    tm, _ = new_transaction()
    sm = DiskSpaceMap.create(tm)
    sm.extend(40_000)
    sm.commit()
    first = ENTRIES_PER_BITMAP - 130  # ranges lie across the border of two bitmaps
    model = [0] * 521
    for sign, begin, nr in changes:
        free = [i for i in range(begin, begin + nr) if not model[i]]
        end = free[0] if sign < 0 and free else begin + nr
        change: Callable[[int, int], None] = sm.inc if sign > 0 else sm.dec
        change(first + begin, first + end)
        for i in range(begin, end):
            model[i] += sign
    assert [sm.count(first + i) for i in range(521)] == model
    assert sm.nr_blocks - sm.nr_free == sum(map(bool, model))
    for i in range(2):
        entry = sm.ll.index.load(i)
        counts = [sm.count(i * ENTRIES_PER_BITMAP + bit) for bit in range(ENTRIES_PER_BITMAP)]
        assert entry.nr_free == counts.count(0)
        assert entry.none_free_before <= counts.index(0)


def test_a_count_of_zero_cannot_drop_and_a_block_beyond_the_end_has_none() -> None:
    tm, _ = new_transaction()
    sm = DiskSpaceMap.create(tm)
    sm.extend(100)
    with pytest.raises(InvalidArgument, match="block 5 has no reference to drop"):
        sm.dec(5, 6)
    with pytest.raises(InvalidArgument, match="block 100 of 100"):
        sm.count(100)


def test_a_leaf_of_other_values_is_bad_metadata() -> None:
    tm, _ = new_transaction()
    root, _ = Btree(tm, ValueType(8)).insert(Btree(tm, ValueType(8)).empty(), (1,), 2)
    with pytest.raises(BadMetadata, match="metadata block 4: btree leaf: value_size: 8, expected 24"):
        Btree(tm, ValueType(24)).lookup_words(root, 1)
