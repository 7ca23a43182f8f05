"""The four kinds of metadata block: bytes in, records out, and what is refused."""

import struct
from array import array
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinfs.errors import BadMetadata, WrongBlock
from thinfs.ondisk import checksum, fields
from thinfs.ondisk.btree_node import INTERNAL_NODE, LEAF_NODE, BtreeNode, max_entries_for
from thinfs.ondisk.space_map import BITMAP, INDEX_ENTRY, Bitmap, IndexEntry, MetadataIndex, SpaceMapRoot
from thinfs.ondisk.superblock import FLAG_NEEDS_CHECK, Superblock, is_unformatted
from thinfs.ondisk.thin import DEVICE_DETAILS, DeviceDetails, pack_mapping, unpack_mapping
from thinfs.persistent.block_manager import MetadataBlock
from thinfs.units import ENTRIES_PER_BITMAP, METADATA_BLOCK_BYTES

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
BLOCK = st.integers(0, 2**40)
ROOTS = st.builds(SpaceMapRoot, U64, U64, U64, U64)

SUPERBLOCKS = st.builds(
    Superblock, flags=U32, uuid=st.binary(min_size=16, max_size=16), version=U32, time=U32, trans_id=U64,
    held_root=U64, data_space_map_root=ROOTS, metadata_space_map_root=ROOTS, data_mapping_root=U64,
    device_details_root=U64, data_block_size=U32, metadata_block_size=U32, metadata_nr_blocks=U64,
    compat_flags=U32, compat_ro_flags=U32, incompat_flags=U32,
)  # fmt: skip


@st.composite
def nodes(draw: st.DrawFn) -> BtreeNode:
    """Nodes whose stale bytes are arbitrary too."""
    value_size = draw(st.sampled_from((4, 8, 16, 24)))
    node = BtreeNode.blank(draw(st.sampled_from((INTERNAL_NODE, LEAF_NODE))), value_size)
    noise = draw(st.randoms(use_true_random=False))
    node.keys = array("Q", noise.randbytes(8 * len(node.keys)))
    node.values = array(node.values.typecode, noise.randbytes(node.values.itemsize * len(node.values)))
    node.trailing = noise.randbytes(len(node.trailing))
    node.padding = draw(U32)
    node.nr_entries = draw(st.integers(0, node.max_entries))
    return node


@st.composite
def bitmaps(draw: st.DrawFn) -> Bitmap:
    noise = draw(st.randoms(use_true_random=False))
    return Bitmap(draw(U32), bytearray(noise.randbytes(ENTRIES_PER_BITMAP // 4)))


@st.composite
def metadata_indexes(draw: st.DrawFn) -> MetadataIndex:
    noise = draw(st.randoms(use_true_random=False))
    return MetadataIndex(draw(U32), array("Q", noise.randbytes(255 * 16)))


@given(st.one_of(SUPERBLOCKS, nodes(), bitmaps(), metadata_indexes()), BLOCK)
def test_every_kind_of_block_survives_the_way_to_bytes_and_back(block: MetadataBlock, block_nr: int) -> None:
    data = block.build(block_nr)
    assert len(data) == METADATA_BLOCK_BYTES
    assert checksum.stored_block_nr(data) == block_nr
    again = type(block).parse(data, block_nr)
    assert again == block
    assert again.build(block_nr) == data


KINDS = [Superblock(data_block_size=128), BtreeNode.blank(LEAF_NODE, 8), Bitmap.blank(), MetadataIndex.blank()]


@pytest.mark.parametrize("block", KINDS, ids=lambda block: type(block).__name__)
def test_another_block_s_number_is_wrong_block_before_the_checksum_is_looked_at(block: MetadataBlock) -> None:
    data = bytearray(block.build(7))
    data[2000] ^= 1
    with pytest.raises(WrongBlock, match=r"metadata block 8: .* says it is block 7"):
        type(block).parse(data, 8)


@pytest.mark.parametrize("block", KINDS, ids=lambda block: type(block).__name__)
@pytest.mark.parametrize("offset", [0, 100, 4095])
def test_one_flipped_bit_is_bad_metadata_that_names_the_block(block: MetadataBlock, offset: int) -> None:
    data = bytearray(block.build(7))
    data[offset] ^= 0x10
    with pytest.raises(BadMetadata, match="metadata block 7"):
        type(block).parse(data, 7)


def test_a_wrong_magic_is_named() -> None:
    data = bytearray(Superblock().build(0))
    data[32] ^= 1
    with pytest.raises(BadMetadata, match="magic"):
        Superblock.parse(checksum.stamp(bytes(data), checksum.SUPERBLOCK_SALT), 0)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(16, 253), (20, 255), (24, 9), (24, 2**32 - 1), (20, 2**32 - 1), (4, 0), (4, 4)],
    ids=["overfull", "too many", "too wide", "huge values", "huge max", "no kind", "unknown kind"],
)
def test_an_impossible_node_is_refused_though_its_checksum_is_right(offset: int, value: int) -> None:
    data = bytearray(BtreeNode.blank(LEAF_NODE, 8).build(5))
    data[offset : offset + 4] = value.to_bytes(4, "little")
    with pytest.raises(BadMetadata, match="metadata block 5: btree node"):
        BtreeNode.parse(checksum.stamp(bytes(data), checksum.BTREE_NODE_SALT), 5)


def test_a_short_block_is_bad_metadata() -> None:
    with pytest.raises(BadMetadata, match="metadata block 3"):
        Bitmap.parse(bytes(100), 3)


def test_the_checksum_is_the_reference_s() -> None:
    # The standard CRC32C of "123456789" is E3069283; not inverted it is 1CF96D7C.
    assert checksum.checksum(b"....123456789", 0) == 0x1CF96D7C
    assert checksum.checksum(b"....123456789", 160774) == 0x1CF96D7C ^ 160774


def test_what_lies_behind_a_space_map_root_is_ignored() -> None:
    superblock = Superblock(data_space_map_root=SpaceMapRoot(1, 2, 3, 4), flags=FLAG_NEEDS_CHECK)
    data = bytearray(superblock.build(0))
    data[64 + 32 : 192] = b"\xa5" * 96
    assert Superblock.parse(checksum.stamp(bytes(data), checksum.SUPERBLOCK_SALT), 0) == superblock
    assert replace(superblock, flags=0) != superblock


def test_only_all_zeros_is_unformatted() -> None:
    assert is_unformatted(bytes(METADATA_BLOCK_BYTES))
    assert not is_unformatted(bytes(METADATA_BLOCK_BYTES - 1) + b"\1")


def test_max_entries_are_the_reference_s() -> None:
    assert [max_entries_for(size) for size in (8, 24, 16, 4)] == [252, 126, 168, 336]


@given(st.integers(0, 2**40 - 1), st.integers(0, 2**24 - 1))
def test_a_mapping_survives_packing(data_block: int, time: int) -> None:
    assert unpack_mapping(pack_mapping(data_block, time)) == (data_block, time)


@given(U64, U64, U32, U32)
def test_details_and_index_entries_survive_their_words(mapped: int, trans_id: int, one: int, other: int) -> None:
    details = DeviceDetails(mapped, trans_id, one, other)
    assert DeviceDetails.from_words(*details.words()) == details
    entry = IndexEntry(mapped, one, other)
    assert IndexEntry.from_words(*entry.words()) == entry


@given(U64, U64, U32, U32)
def test_details_and_index_entries_lie_on_disk_as_their_schemas_say(
    mapped: int, tid: int, one: int, other: int
) -> None:
    for schema, record in (
        (DEVICE_DETAILS, DeviceDetails(mapped, tid, one, other)),
        (INDEX_ENTRY, IndexEntry(mapped, one, other)),
    ):
        assert b"".join(word.to_bytes(8, "little") for word in record.words()) == schema.build(asdict(record))


def test_a_record_that_is_not_made_of_u64_has_no_words() -> None:
    with pytest.raises(ValueError, match="12 bytes"):
        fields.words(struct.Struct("<QI"))


def test_a_count_s_lower_bit_is_its_high_bit() -> None:
    bitmap = Bitmap.blank()
    bitmap.entries[0] = 0b11_01_10_00
    assert [bitmap.small_count(bit) for bit in range(4)] == [0, 1, 2, 3]


def test_a_leaf_that_becomes_internal_keeps_its_bytes_behind_the_header() -> None:
    node = BtreeNode.blank(LEAF_NODE, 24)
    for key in range(node.max_entries):
        node.insert_at(key, key, array("Q", (key, key, key)))
    before = node.build(9)
    node.become_internal()
    after = node.build(9)
    assert (node.max_entries, node.value_size, node.nr_entries) == (252, 8, 0)
    assert after[32:] == before[32:]


def test_removal_leaves_the_last_entry_behind_as_a_stale_one() -> None:
    node = BtreeNode.blank(LEAF_NODE, 8)
    for key in (10, 20, 30):
        node.insert_at(node.nr_entries, key, array("Q", (key,)))
    node.delete_at(0)
    assert list(node.keys[:4]) == [20, 30, 30, 0]
    assert node.nr_entries == 2


@given(nodes(), BLOCK)
def test_a_node_is_decoded_and_encoded_as_its_schema_says(node: BtreeNode, block_nr: int) -> None:
    data = node._encode(block_nr)
    assert data == node._encode_by_schema(block_nr)
    assert BtreeNode._decode(data, block_nr) == BtreeNode._decode_by_schema(data, block_nr) == node


@given(bitmaps(), BLOCK)
def test_a_bitmap_is_encoded_as_its_schema_says(bitmap: Bitmap, block_nr: int) -> None:
    parsed = BITMAP.parse(bitmap.build(block_nr))
    assert (parsed.not_used, parsed.blocknr, parsed.entries) == (bitmap.not_used, block_nr, bytes(bitmap.entries))
