"""The bytes of space maps: root, index entry, index block of the metadata map, bitmap of 2-bit counts.

Promises: `parse(data, block_nr)` refuses a wrong block number or checksum, `build(block_nr)` gives a
stamped block. Never decides anything: see persistent/space_map.py. Source: docs/reference/format.md, 5.
"""

from array import array
from dataclasses import dataclass
from typing import Final

from construct import Bytes, Int32ul, Int64ul, Struct

from thinfs.blockdev import Buffer
from thinfs.ondisk import checksum, fields
from thinfs.units import ENTRIES_PER_BITMAP, MAX_METADATA_BITMAPS

SPACE_MAP_ROOT = Struct(
    "nr_blocks" / Int64ul,
    "nr_allocated" / Int64ul,
    "bitmap_root" / Int64ul,  # disk map: btree of index entries; metadata map: the index block
    "ref_count_root" / Int64ul,  # btree, block -> u32, of the counts of 3 and more
)

INDEX_ENTRY = Struct(
    "blocknr" / Int64ul,  # of the bitmap
    "nr_free" / Int32ul,  # starts at 16320 even where the last bitmap covers fewer blocks
    "none_free_before" / Int32ul,  # no free entry below this bit
)
_ENTRY: Final = fields.leading_integers(INDEX_ENTRY)  # all of it
_ENTRY_WORDS: Final = fields.words(_ENTRY)
INDEX_ENTRY_BYTES: Final = _ENTRY.size

METADATA_INDEX = Struct(
    "csum" / Int32ul,
    "padding" / Int32ul,
    "blocknr" / Int64ul,
    "index" / fields.u64_array(lambda _: 2 * MAX_METADATA_BITMAPS),  # entries as pairs of words
)

BITMAP = Struct(
    "csum" / Int32ul,
    "not_used" / Int32ul,
    "blocknr" / Int64ul,
    "entries" / Bytes(ENTRIES_PER_BITMAP // 4),
)

_BITMAP_HEADER: Final = fields.leading_integers(BITMAP)  # built at each commit; construct takes ten times as long

# A pair of bits -> the count it stands for, and back: its lower bit is the count's high bit; 3 = overflow tree.
PAIR_TO_COUNT: Final = (0, 2, 1, 3)
OVERFLOW: Final = 3


@dataclass(frozen=True, slots=True)
class SpaceMapRoot:
    nr_blocks: int = 0
    nr_allocated: int = 0
    bitmap_root: int = 0
    ref_count_root: int = 0


@dataclass(frozen=True, slots=True)
class IndexEntry:
    blocknr: int = 0
    nr_free: int = 0
    none_free_before: int = 0

    @classmethod
    def from_words(cls, *words: int) -> "IndexEntry":
        return cls(*_ENTRY.unpack(_ENTRY_WORDS.pack(*words)))

    def words(self) -> tuple[int, ...]:
        """The entry as the two u64 that a btree node of 16-byte values holds."""
        return _ENTRY_WORDS.unpack(_ENTRY.pack(self.blocknr, self.nr_free, self.none_free_before))


@dataclass(slots=True)
class MetadataIndex:
    """The one index block of the metadata space map. Mutable: it is the block in memory."""

    padding: int
    index: "array[int]"

    @classmethod
    def blank(cls) -> "MetadataIndex":
        return cls(0, array("Q", bytes(INDEX_ENTRY_BYTES * MAX_METADATA_BITMAPS)))

    @classmethod
    def parse(cls, data: Buffer, block_nr: int) -> "MetadataIndex":
        checksum.check_block_nr(data, block_nr, "metadata index")
        checksum.check_sum(data, block_nr, checksum.METADATA_INDEX_SALT, "metadata index")
        raw = fields.parse(METADATA_INDEX, data, block_nr, "metadata index")
        return cls(raw.padding, raw.index)

    def check(self, block_nr: int) -> None:
        """Its entries are judged one by one, where they are used."""

    def build(self, block_nr: int) -> bytes:
        raw = {"csum": 0, "padding": self.padding, "blocknr": block_nr, "index": self.index}
        return checksum.stamp(
            fields.build(METADATA_INDEX, raw, block_nr, "metadata index"), checksum.METADATA_INDEX_SALT
        )

    def copy(self) -> "MetadataIndex":
        return MetadataIndex(self.padding, self.index[:])

    def entries(self) -> list[IndexEntry]:
        words = self.index
        return [IndexEntry.from_words(words[i], words[i + 1]) for i in range(0, len(words), 2)]

    def set_entry(self, i: int, entry: IndexEntry) -> None:
        self.index[2 * i], self.index[2 * i + 1] = entry.words()


@dataclass(slots=True)
class Bitmap:
    """16320 2-bit counts. Mutable: it is the block in memory."""

    not_used: int
    entries: bytearray

    @classmethod
    def blank(cls) -> "Bitmap":
        return cls(0, bytearray(ENTRIES_PER_BITMAP // 4))

    @classmethod
    def parse(cls, data: Buffer, block_nr: int) -> "Bitmap":
        checksum.check_block_nr(data, block_nr, "bitmap")
        checksum.check_sum(data, block_nr, checksum.BITMAP_SALT, "bitmap")
        raw = fields.parse(BITMAP, data, block_nr, "bitmap")
        return cls(raw.not_used, bytearray(raw.entries))

    def check(self, block_nr: int) -> None:
        """Any 2-bit counts may stand side by side."""

    def build(self, block_nr: int) -> bytes:
        return checksum.stamp(_BITMAP_HEADER.pack(0, self.not_used, block_nr) + self.entries, checksum.BITMAP_SALT)

    def copy(self) -> "Bitmap":
        return Bitmap(self.not_used, self.entries[:])

    def small_count(self, bit: int) -> int:
        """0, 1, 2, or 3 for "look in the overflow tree"."""
        return PAIR_TO_COUNT[self.entries[bit >> 2] >> ((bit & 3) << 1) & 3]
