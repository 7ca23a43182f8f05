"""Damaged metadata with right checksums: a ThinfsError or success, in bounded steps, whatever is asked of the pool."""

from array import array
from collections.abc import Callable, Mapping

import pytest

from tests.fuzz.damage import damage
from tests.fuzz.exercise import MAX_STEPS, Exercise, TooManySteps, counted, exercise
from tests.fuzz.pools import DATA_BLOCK_SECTORS, NAMES, Pool, pool
from tests.fuzz.served import Bug, serve
from thinfs.errors import BadMetadata, InvalidArgument, ThinfsError
from thinfs.ondisk import checksum
from thinfs.ondisk.btree_node import HEADER_BYTES, BtreeNode
from thinfs.pool.metadata import PoolMetadata
from thinfs.steps import drive

Blocks = Mapping[int, bytes]
Call = Callable[[PoolMetadata], object]
_NR_SEEDS = 10


@pytest.mark.parametrize("name", NAMES)
def test_damage_made_by_seed_is_a_refusal_or_nothing(name: str) -> None:
    for seed in range(_NR_SEEDS):
        done = damage(pool(name), seed)
        print(f"pool {name}, seed {seed}: {'; '.join(done.words)}")
        assert exercise(pool(name), done.blocks, seed)
        assert serve(pool(name), done.blocks, seed)


@pytest.mark.parametrize("name", NAMES)
def test_a_sound_pool_takes_all_that_is_done_to_it_well_within_the_steps(name: str) -> None:
    sound = pool(name)
    for seed in range(3):
        run = Exercise(sound, sound.device(), seed)
        with counted() as nr_steps:
            run.run()
        assert nr_steps() < MAX_STEPS / 3
        assert [line for line in run.outcomes if "BadMetadata" in line or "IOFailed" in line] == []


def test_a_bug_that_the_pool_answers_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: PoolMetadata) -> int:
        return 1 // 0

    monkeypatch.setattr(PoolMetadata, "alloc_data_block", broken)
    with pytest.raises(Bug, match="ZeroDivisionError"):
        for seed in range(20):
            serve(pool("small"), {}, seed)


def test_the_same_seed_does_the_same_damage() -> None:
    one, other = damage(pool("shared"), 5), damage(pool("shared"), 5)
    assert one.words == other.words
    assert one.blocks == other.blocks != {}


def test_what_does_not_end_is_told() -> None:
    with pytest.raises(TooManySteps), counted(1000):
        while True:
            len("")


# -- images that came to something else than a ThinfsError, or to nothing at all


def changed(block_nr: int, sound: Pool, change: Callable[[BtreeNode], object]) -> Blocks:
    node = BtreeNode._decode(sound.blocks[block_nr], block_nr)
    change(node)
    return {block_nr: node.build(block_nr)}


def poked(block_nr: int, sound: Pool, at: int, value: int, size: int, salt: int = checksum.BTREE_NODE_SALT) -> Blocks:
    data = bytearray(sound.blocks[block_nr])
    data[at : at + size] = value.to_bytes(size, "little")
    return {block_nr: checksum.stamp(bytes(data), salt)}


def root_of(sound: Pool, kind: str) -> int:
    return sound.kinds[kind][0]


def internal(sound: Pool, kind: str) -> int:
    """The first internal node of a kind."""
    return next(nr for nr in sound.kinds[kind] if not BtreeNode._decode(sound.blocks[nr], nr).is_leaf)


def first_leaf(sound: Pool, kind: str) -> int:
    return next(nr for nr in sound.kinds[kind] if BtreeNode._decode(sound.blocks[nr], nr).is_leaf)


def opened(sound: Pool, blocks: Blocks) -> PoolMetadata:
    return PoolMetadata.open(sound.device(blocks), DATA_BLOCK_SECTORS)


def refused(sound: Pool, blocks: Blocks, call: Call, error: type[ThinfsError] = BadMetadata) -> str:
    """The words of the refusal; bounded, so that a loop fails."""
    with counted(), pytest.raises(error) as raised:
        call(opened(sound, blocks))
    return str(raised.value)


def read_all(metadata: PoolMetadata) -> None:
    thin = metadata.open_thin(0)
    for thin_block in range(2000):
        thin.find_block(thin_block)


def discard_all(metadata: PoolMetadata) -> None:
    drive(metadata.open_thin(0).remove_range(0, 1 << 40))


def snapshot(metadata: PoolMetadata) -> None:
    metadata.create_snap(4711, 0)


def write(metadata: PoolMetadata) -> None:
    thin = metadata.open_thin(0)
    for thin_block in range(0, 2000, 3):
        thin.insert_block(thin_block, metadata.alloc_data_block())


def lead_to_itself(block_nr: int) -> Callable[[BtreeNode], None]:
    def change(node: BtreeNode) -> None:
        node.values[: node.nr_entries] = array("Q", [block_nr] * node.nr_entries)

    return change


WAYS_THROUGH_A_TREE: Mapping[str, Call] = {
    "lookup": read_all,
    "next": lambda metadata: metadata.open_thin(0).find_mapped_range(1, 1 << 40),
    "highest": lambda metadata: metadata.open_thin(0).highest_mapped_block(),
    "insert": write,
    "remove": discard_all,
}


@pytest.mark.parametrize("way", WAYS_THROUGH_A_TREE)
def test_a_node_that_leads_to_itself_ends_every_way_through_it(way: str) -> None:
    sound = pool("shared")
    block_nr = internal(sound, "mapping tree")
    blocks = changed(block_nr, sound, lead_to_itself(block_nr))
    assert refused(sound, blocks, WAYS_THROUGH_A_TREE[way]).startswith("metadata block ")


def test_devices_of_a_details_tree_that_leads_to_itself_end() -> None:
    sound = pool("many")
    block_nr = internal(sound, "details tree")
    blocks = changed(block_nr, sound, lead_to_itself(block_nr))
    assert f"metadata block {block_nr}: " in refused(sound, blocks, lambda metadata: list(metadata.devices()))


def delete(metadata: PoolMetadata) -> None:
    drive(metadata.objects.mapping.delete(metadata.transaction.mapping_root))


def test_the_deletion_of_a_tree_that_leads_to_itself_ends() -> None:
    sound = pool("many")
    block_nr = internal(sound, "device tree")
    blocks = changed(block_nr, sound, lead_to_itself(block_nr))
    assert refused(sound, blocks, delete) == f"metadata block {block_nr}: btree: more than 16 nodes lead to it"


def test_a_child_that_is_there_twice_is_deleted_once() -> None:
    sound = pool("many")
    block_nr = internal(sound, "device tree")
    first = BtreeNode._decode(sound.blocks[block_nr], block_nr).values[0]
    blocks = changed(block_nr, sound, lead_to_itself(first))
    assert refused(sound, blocks, delete) == f"metadata block {first}: a btree leads to it, and it is free"


@pytest.mark.parametrize("call", [read_all, write, discard_all], ids=lambda call: call.__name__)
def test_keys_out_of_order_are_refused_where_they_are_read(call: Call) -> None:
    sound = pool("shared")
    block_nr = first_leaf(sound, "mapping tree")

    def swap(node: BtreeNode) -> None:
        node.keys[3], node.keys[4] = node.keys[4], node.keys[3]

    keys = BtreeNode._decode(sound.blocks[block_nr], block_nr).keys
    refusal = f"metadata block {block_nr}: btree node: keys[4]: {keys[3]} after {keys[4]}"
    assert refused(sound, changed(block_nr, sound, swap), call) == refusal


def test_a_discard_of_keys_that_are_not_on_their_way_ends() -> None:
    """They are in order, but beyond what their parent says: they are found, and cannot be removed."""
    sound = pool("shared")
    parent = internal(sound, "mapping tree")
    leaf = BtreeNode._decode(sound.blocks[parent], parent).values[1]

    def move_up(node: BtreeNode) -> None:
        node.keys[: node.nr_entries] = array("Q", (key + 100_000 for key in node.keys[: node.nr_entries]))

    assert f"metadata block {leaf}: btree node: keys: " in refused(sound, changed(leaf, sound, move_up), discard_all)


@pytest.mark.parametrize(
    ("field", "at", "value"),
    [("max_entries", 20, 127), ("max_entries", 20, 251), ("value_size", 24, 0), ("value_size", 24, 5)],
)
def test_a_node_of_a_size_that_no_tree_has_is_refused(field: str, at: int, value: int) -> None:
    sound = pool("small")
    block_nr = root_of(sound, "mapping tree")
    words = refused(sound, poked(block_nr, sound, at, value, 4), write)
    assert words.startswith(f"metadata block {block_nr}: btree node: max_entries: ")


def test_a_full_leaf_of_no_entries_is_not_split() -> None:
    sound = pool("small")
    block_nr = root_of(sound, "device tree")
    data = bytearray(poked(block_nr, sound, 16, 0, 4)[block_nr])
    data[20:24] = bytes(4)
    blocks = {block_nr: checksum.stamp(bytes(data), checksum.BTREE_NODE_SALT)}
    words = refused(sound, blocks, lambda metadata: metadata.create_thin(77))
    assert words == f"metadata block {block_nr}: btree node: max_entries: 0 values of 8 bytes"


def test_an_internal_node_without_children_is_refused() -> None:
    sound = pool("shared")
    block_nr = internal(sound, "mapping tree")
    words = refused(sound, poked(block_nr, sound, 16, 0, 4), read_all)
    assert words == f"metadata block {block_nr}: btree node: nr_entries: an internal node of 0 children of 8 bytes"


def test_the_leaf_of_another_tree_is_refused_by_the_size_of_its_values() -> None:
    sound = pool("small")
    details = root_of(sound, "details tree")
    data = sound.blocks[root_of(sound, "mapping tree")]
    body = data[:8] + details.to_bytes(8, "little") + data[16:]
    blocks = {details: checksum.stamp(body, checksum.BTREE_NODE_SALT)}
    words = f"metadata block {details}: btree leaf: value_size: 8, expected 24"
    assert refused(sound, blocks, lambda metadata: metadata.open_thin(0)) == words
    assert refused(sound, blocks, lambda metadata: list(metadata.devices())) == words


@pytest.mark.parametrize("block_nr", [1 << 52, (1 << 64) - 1, 4_161_600])
def test_a_root_beyond_every_device_is_refused_by_reads_and_changes(block_nr: int) -> None:
    sound = pool("small")
    tree = root_of(sound, "device tree")

    def lead_there(node: BtreeNode) -> None:
        node.values[0] = block_nr

    blocks = changed(tree, sound, lead_there)
    assert refused(sound, blocks, read_all) == f"metadata block {block_nr}: there are at most 4161600"
    assert refused(sound, blocks, snapshot, InvalidArgument).startswith(f"space map: blocks {block_nr}..")
    assert refused(sound, blocks, write, InvalidArgument) == f"space map: block {block_nr} of 256"


def test_a_count_that_cannot_grow_is_refused() -> None:
    sound = pool("shared")
    block_nr = first_leaf(sound, "data overflow tree")
    node = BtreeNode._decode(sound.blocks[block_nr], block_nr)
    data_block = node.keys[0]
    blocks = poked(block_nr, sound, HEADER_BYTES + 8 * node.max_entries, (1 << 32) - 1, 4)
    words = refused(sound, blocks, lambda metadata: metadata.inc_data_blocks(data_block, data_block + 1))
    assert words == f"space map: block {data_block}: more than 4294967295 references"


def test_an_index_entry_that_counts_fewer_free_blocks_than_are_taken_is_refused() -> None:
    sound = pool("small")
    block_nr = root_of(sound, "data index tree")
    blocks = poked(block_nr, sound, HEADER_BYTES + 8 * 168 + 8, 1, 4)
    words = refused(sound, blocks, lambda metadata: metadata.inc_data_blocks(400, 420))
    assert "bitmap: its index entry cannot be: IndexEntry" in words


def test_more_blocks_allocated_than_there_are_is_refused_at_the_opening() -> None:
    sound = pool("small")
    blocks = poked(0, sound, 72, 1 << 60, 8, checksum.SUPERBLOCK_SALT)
    words = refused(sound, blocks, lambda _: None)
    assert words == f"space map: nr_allocated: {1 << 60} of 512 blocks"


def test_the_clock_and_the_count_of_mappings_wrap_as_the_kernel_s() -> None:
    sound = pool("small")
    metadata = opened(sound, poked(0, sound, 44, (1 << 32) - 1, 4, checksum.SUPERBLOCK_SALT))
    snapshot(metadata)
    drive(metadata.commit())
    assert metadata.time == 0
    details = root_of(sound, "details tree")
    metadata = opened(sound, poked(details, sound, HEADER_BYTES + 8 * 126, 0, 8))
    thin = metadata.open_thin(0)
    drive(thin.remove_range(0, 1 << 40))
    drive(metadata.commit())
    assert thin.mapped_blocks > 1 << 63
