"""Damage to metadata that its checksums do not show: fields, keys, pointers and counts changed, then stamped anew.

Promises: the same seed does the same damage; every block keeps its number and a right checksum. A damage says in words
what it is, so that a failing seed can be read.
"""

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Final

from tests.fuzz.pools import Pool
from thinfs.errors import BadMetadata
from thinfs.ondisk import checksum
from thinfs.ondisk.btree_node import BTREE_NODE, HEADER_BYTES, BtreeNode
from thinfs.ondisk.space_map import METADATA_INDEX
from thinfs.ondisk.superblock import SUPERBLOCK
from thinfs.units import METADATA_BLOCK_BYTES

_U32: Final = 4
_U64: Final = 8
_NODE_FIELDS: Final = {
    "flags": (4, _U32),
    "nr_entries": (16, _U32),
    "max_entries": (20, _U32),
    "value_size": (24, _U32),
}
_SUPERBLOCK_FIELDS: Final = {
    "flags": (4, _U32), "version": (40, _U32), "time": (44, _U32), "trans_id": (48, _U64), "held_root": (56, _U64),
    "data nr_blocks": (64, _U64), "data nr_allocated": (72, _U64), "data bitmap_root": (80, _U64),
    "data ref_count_root": (88, _U64), "metadata nr_blocks": (192, _U64), "metadata nr_allocated": (200, _U64),
    "metadata bitmap_root": (208, _U64), "metadata ref_count_root": (216, _U64), "data_mapping_root": (320, _U64),
    "device_details_root": (328, _U64), "data_block_size": (336, _U32), "metadata_block_size": (340, _U32),
    "metadata_nr_blocks": (344, _U64),
}  # fmt: skip
assert BTREE_NODE is not None and SUPERBLOCK is not None and METADATA_INDEX is not None  # whose offsets these are


def _salt(kind: str) -> int:
    if "superblock" in kind:
        return checksum.SUPERBLOCK_SALT
    if "bitmap" in kind:
        return checksum.BITMAP_SALT
    return checksum.METADATA_INDEX_SALT if kind == "metadata index" else checksum.BTREE_NODE_SALT


@dataclass(slots=True)
class Damage:
    """A pool's blocks as changed so far, and what was done."""

    pool: Pool
    random: Random
    blocks: dict[int, bytes] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)

    def do(self) -> None:
        kind = self.random.choice(sorted(self.pool.kinds))
        block_nr = self._some(kind)
        data = bytearray(self._block(block_nr))
        self.words.append(f"{kind}, block {block_nr}: {self._change(kind, block_nr, data)}")
        data[8:16] = block_nr.to_bytes(8, "little")
        self.blocks[block_nr] = checksum.stamp(bytes(data), _salt(kind))

    def _block(self, block_nr: int) -> bytes:
        return self.blocks.get(block_nr) or self.pool.blocks[block_nr]

    def _some(self, kind: str) -> int:
        """Any of its blocks; a tree's root, which comes first, more often."""
        numbers = self.pool.kinds[kind]
        return numbers[0] if self.random.random() < 0.25 else self.random.choice(numbers)

    def _anywhere(self) -> int:
        """A block number: one that is something, of whatever kind, or one that is nothing."""
        choice = self.random.random()
        if choice < 0.75:
            return self._some(self.random.choice(sorted(self.pool.kinds)))
        return self.random.choice((0, 1, self.random.randrange(self.pool.nr_blocks), self.pool.nr_blocks, *_EXTREMES))

    def _change(self, kind: str, block_nr: int, data: bytearray) -> str:
        if self.random.random() < 0.06:
            return self._bytes(data, 16)
        if self.random.random() < 0.05:
            other = self._anywhere()
            if other in self.pool.blocks:
                data[16:] = self._block(other)[16:]
                return f"the body of block {other}"
        if "superblock" in kind:
            name = self.random.choice(sorted(_SUPERBLOCK_FIELDS))
            return self._field(data, name, *_SUPERBLOCK_FIELDS[name])
        if "bitmap" in kind:
            return self._bitmap(data)
        if kind == "metadata index":
            return self._entry(data, 16 + 16 * self.random.choice((0, 0, 1, 2, self.random.randrange(255))))
        return self._node(kind, block_nr, data)

    def _bytes(self, data: bytearray, begin: int) -> str:
        at = self.random.randrange(begin, METADATA_BLOCK_BYTES)
        length = self.random.choice((1, 1, 2, 8, 64))
        new = self.random.randbytes(min(length, METADATA_BLOCK_BYTES - at))
        data[at : at + len(new)] = new
        return f"{len(new)} bytes at {at} are {new.hex()}"

    def _field(self, data: bytearray, name: str, at: int, size: int) -> str:
        old = int.from_bytes(data[at : at + size], "little")
        new = self._number(old) & ((1 << 8 * size) - 1)
        data[at : at + size] = new.to_bytes(size, "little")
        return f"{name} {old} is {new}"

    def _number(self, old: int) -> int:
        kind = self.random.randrange(5)
        if kind == 0:
            return old + self.random.choice((-1, 1, -2, 2, 64, 16320))
        if kind == 1:
            return self.random.choice((0, 1, 2, 3, 252, 253, 336, *_EXTREMES))
        if kind == 2:
            return self.random.getrandbits(self.random.choice((3, 9, 16, 32, 64)))
        if kind == 3:
            return old ^ 1 << self.random.randrange(64)
        return self._anywhere()

    def _bitmap(self, data: bytearray) -> str:
        begin = 16 + self.random.choice((0, self.random.randrange(4080)))
        length = self.random.choice((1, 4, 64, METADATA_BLOCK_BYTES))
        byte = self.random.choice((0x00, 0x55, 0xAA, 0xFF, self.random.randrange(256)))
        length = min(length, METADATA_BLOCK_BYTES - begin)
        data[begin : begin + length] = bytes((byte,)) * length
        return f"{length} bytes at {begin} are {byte:#04x}"

    def _entry(self, data: bytearray, at: int) -> str:
        name, offset, size = self.random.choice((("blocknr", 0, 8), ("nr_free", 8, 4), ("none_free_before", 12, 4)))
        return f"the entry at {at}: {self._field(data, name, at + offset, size)}"

    def _node(self, kind: str, block_nr: int, data: bytearray) -> str:
        if self.random.random() < 0.2:
            name = self.random.choice(sorted(_NODE_FIELDS))
            return self._field(data, name, *_NODE_FIELDS[name])
        try:
            node = BtreeNode._decode(bytes(data), block_nr)
        except BadMetadata:  # an earlier damage has made it impossible
            return self._bytes(data, HEADER_BYTES)
        nr = node.nr_entries
        if nr == 0:
            return self._field(data, "nr_entries", *_NODE_FIELDS["nr_entries"])
        if self.random.random() < 0.5:
            return self._keys(node, data)
        i = self.random.choice((0, nr - 1, self.random.randrange(nr)))
        at = HEADER_BYTES + 8 * node.max_entries + node.value_size * i
        if not node.is_leaf:
            return f"child {i}: " + self._pointer(data, at, block_nr, node.values)
        if kind.endswith("device tree"):
            return f"root {i}: " + self._pointer(data, at, block_nr, node.values)
        if node.value_size == 16:
            return self._entry(data, at)
        if node.value_size == 8:
            new = self.random.choice((self._number(node.values[i]), node.values[self.random.randrange(nr)]))
            new &= (1 << 64) - 1
            data[at : at + 8] = new.to_bytes(8, "little")
            return f"mapping {i} {node.values[i]:#x} is {new:#x}"
        if node.value_size == 24:
            name, offset, size = self.random.choice(
                (("mapped_blocks", 0, 8), ("transaction_id", 8, 8), ("creation_time", 16, 4), ("snapped_time", 20, 4))
            )
            return f"details {i}: {self._field(data, name, at + offset, size)}"
        return f"count {i}: {self._field(data, 'count', at, node.value_size)}"

    def _pointer(self, data: bytearray, at: int, own: int, siblings: "array[int]") -> str:
        new = self.random.choice((own, self._anywhere(), self._anywhere(), self.random.choice(siblings)))
        data[at : at + 8] = (new & (1 << 64) - 1).to_bytes(8, "little")
        return f"leads to block {new}"

    def _keys(self, node: BtreeNode, data: bytearray) -> str:
        keys, nr = node.keys, node.nr_entries
        i, j = self.random.randrange(nr), self.random.randrange(nr)
        way = self.random.choice(("swapped", "the same", "reversed", "moved up", "moved down", "one is another"))
        if way == "swapped":
            keys[i], keys[j] = keys[j], keys[i]
        elif way == "the same":
            keys[i] = keys[j]
        elif way == "reversed":
            keys[:nr] = array("Q", reversed(keys[:nr]))
        elif way == "one is another":
            keys[i] = self._number(keys[i]) & (1 << 64) - 1
        else:  # in order still, but not where the parent says
            by = self.random.choice((1, 3, 100, 100_000)) * (1 if way == "moved up" else -1)
            keys[:nr] = array("Q", ((key + by) & (1 << 64) - 1 for key in keys[:nr]))
        data[HEADER_BYTES : HEADER_BYTES + 8 * nr] = keys[:nr].tobytes()
        return f"keys {i} and {j} of {nr}: {way}"


_EXTREMES: Final = (1 << 31, (1 << 32) - 1, (1 << 40) + 3, (1 << 52) - 1, (1 << 63), (1 << 64) - 1)

Planted = Callable[[Pool], Mapping[int, bytes]]


def damage(pool: Pool, seed: int) -> Damage:
    """One to three damages of a sound pool."""
    done = Damage(pool, Random(f"{pool.name} {seed}"))
    for _ in range(done.random.choice((1, 1, 1, 2, 3))):
        done.do()
    return done
