"""A btree node: header, keys, values, and every stale byte behind the live entries.

Promises: arrays of full length (`max_entries`), so that moving entries leaves behind exactly the bytes that the
kernel's memmoves leave; `parse` refuses a wrong number, checksum or an impossible header. A value is one
u32, or one to three u64 (`stride` items of `values`). Mutable: it is the block in memory. Never follows a
pointer: see persistent/btree.py; `check` is what a tree may take for granted of each of its nodes.
Source: docs/reference/format.md, 3.
"""

from array import array
from dataclasses import dataclass, field
from operator import lt
from typing import Final

from construct import Bytes, Check, Int32ul, Int64ul, Struct

from thinfs.blockdev import Buffer
from thinfs.errors import BadMetadata
from thinfs.ondisk import checksum, fields
from thinfs.units import METADATA_BLOCK_BYTES

INTERNAL_NODE: Final = 1
LEAF_NODE: Final = 2
HEADER_BYTES: Final = 32
_BODY_BYTES: Final = METADATA_BLOCK_BYTES - HEADER_BYTES

BTREE_NODE = Struct(
    "csum" / Int32ul,
    "flags" / Int32ul,
    "blocknr" / Int64ul,
    "nr_entries" / Int32ul,
    "max_entries" / Int32ul,
    "value_size" / Int32ul,
    "padding" / Int32ul,
    "fits" / Check(lambda node: (8 + node.value_size) * node.max_entries <= _BODY_BYTES),
    "not_overfull" / Check(lambda node: node.nr_entries <= node.max_entries),
    "internal_or_leaf" / Check(lambda node: node.flags & (INTERNAL_NODE | LEAF_NODE)),
    "keys" / fields.u64_array(lambda node: node.max_entries),
    "values"
    / fields.IntArray(
        lambda node: fields.value_typecode(node.value_size), lambda node: node.max_entries * _stride(node.value_size)
    ),
    "trailing" / Bytes(lambda node: _BODY_BYTES - (8 + node.value_size) * node.max_entries),
)

# construct takes 30 us for a node, which is most of a lookup that misses the cache; its header goes at once here. The
# schema stays the description: the format is made from it, and what does not fit goes through it to be refused.
_HEADER: Final = fields.leading_integers(BTREE_NODE)


def max_entries_for(value_size: int) -> int:
    """A multiple of three, as the kernel's calc_max_entries."""
    return 3 * (_BODY_BYTES // (8 + value_size) // 3)


_MAX_ENTRIES: Final = {size: max_entries_for(size) for size in (4, 8, 16, 24)}  # of all values there are


def _stride(value_size: int) -> int:
    """Items of the values array that make up one value."""
    return value_size // (1, 1, 1, 1, 4, 1, 1, 1, 8)[value_size & 7 or 8]


@dataclass(slots=True)
class BtreeNode:
    flags: int
    nr_entries: int
    max_entries: int
    value_size: int
    padding: int
    keys: "array[int]"
    values: "array[int]"
    trailing: bytes
    is_leaf: bool = field(init=False)
    stride: int = field(init=False)

    def __post_init__(self) -> None:
        self.is_leaf = not self.flags & INTERNAL_NODE
        self.stride = _stride(self.value_size)

    @classmethod
    def blank(cls, flags: int, value_size: int, max_entries: int | None = None) -> "BtreeNode":
        """A freshly allocated, zeroed node."""
        nr = max_entries_for(value_size) if max_entries is None else max_entries
        keys: array[int] = array("Q", bytes(8 * nr))
        values: array[int] = array(fields.value_typecode(value_size), bytes(value_size * nr))
        return cls(flags, 0, nr, value_size, 0, keys, values, bytes(_BODY_BYTES - (8 + value_size) * nr))

    @classmethod
    def parse(cls, data: Buffer, block_nr: int) -> "BtreeNode":
        checksum.check_block_nr(data, block_nr, "btree node")
        checksum.check_sum(data, block_nr, checksum.BTREE_NODE_SALT, "btree node")
        return cls._decode(data, block_nr)

    @classmethod
    def _decode(cls, data: Buffer, block_nr: int) -> "BtreeNode":
        _, flags, _, nr_entries, max_entries, value_size, padding = _HEADER.unpack_from(data)
        end_of_keys = HEADER_BYTES + 8 * max_entries
        end_of_values = end_of_keys + value_size * max_entries
        if (
            end_of_values > METADATA_BLOCK_BYTES
            or nr_entries > max_entries
            or not flags & (INTERNAL_NODE | LEAF_NODE)
            or not fields.ARRAYS_ARE_LITTLE_ENDIAN
        ):
            return cls._decode_by_schema(data, block_nr)
        view = memoryview(data)
        keys: array[int] = array("Q")
        values: array[int] = array(fields.value_typecode(value_size))
        keys.frombytes(view[HEADER_BYTES:end_of_keys])
        values.frombytes(view[end_of_keys:end_of_values])
        trailing = bytes(view[end_of_values:])
        return cls(flags, nr_entries, max_entries, value_size, padding, keys, values, trailing)

    @classmethod
    def _decode_by_schema(cls, data: Buffer, block_nr: int) -> "BtreeNode":
        raw = fields.parse(BTREE_NODE, data, block_nr, "btree node")
        return cls(
            raw.flags,
            raw.nr_entries,
            raw.max_entries,
            raw.value_size,
            raw.padding,
            raw["keys"],
            raw["values"],
            raw.trailing,
        )

    def check(self, block_nr: int) -> None:
        """Raises BadMetadata for sizes that no tree has, and for keys that do not ascend."""
        nr = self.nr_entries
        if _MAX_ENTRIES.get(self.value_size) != self.max_entries:
            raise self._bad(block_nr, "max_entries", f"{self.max_entries} values of {self.value_size} bytes")
        if not self.is_leaf and (nr == 0 or self.value_size != 8):
            raise self._bad(block_nr, "nr_entries", f"an internal node of {nr} children of {self.value_size} bytes")
        keys = self.keys[:nr]
        if not all(map(lt, keys, keys[1:])):
            i = next(i for i in range(1, nr) if keys[i] <= keys[i - 1])
            raise self._bad(block_nr, f"keys[{i}]", f"{keys[i]} after {keys[i - 1]}")

    @staticmethod
    def _bad(block_nr: int, path: str, what: str) -> BadMetadata:
        return BadMetadata(f"metadata block {block_nr}: btree node: {path}: {what}")

    def _encode(self, block_nr: int) -> bytes:
        if not fields.ARRAYS_ARE_LITTLE_ENDIAN:
            return self._encode_by_schema(block_nr)
        header = _HEADER.pack(0, self.flags, block_nr, self.nr_entries, self.max_entries, self.value_size, self.padding)
        data = b"".join((header, self.keys.tobytes(), self.values.tobytes(), self.trailing))
        assert len(data) == METADATA_BLOCK_BYTES
        return data

    def _encode_by_schema(self, block_nr: int) -> bytes:
        raw = {
            "csum": 0, "flags": self.flags, "blocknr": block_nr, "nr_entries": self.nr_entries,
            "max_entries": self.max_entries, "value_size": self.value_size, "padding": self.padding,
            "keys": self.keys, "values": self.values, "trailing": self.trailing,
        }  # fmt: skip
        return fields.build(BTREE_NODE, raw, block_nr, "btree node")

    def build(self, block_nr: int) -> bytes:
        return checksum.stamp(self._encode(block_nr), checksum.BTREE_NODE_SALT)

    def copy(self) -> "BtreeNode":
        return BtreeNode(
            self.flags, self.nr_entries, self.max_entries, self.value_size, self.padding,
            self.keys[:], self.values[:], self.trailing,
        )  # fmt: skip

    def become(self, other: "BtreeNode") -> None:
        """Take over the whole block of `other`; both stay separate."""
        twin = other.copy()
        self.flags, self.is_leaf, self.nr_entries, self.max_entries = (
            twin.flags, twin.is_leaf, twin.nr_entries, twin.max_entries,
        )  # fmt: skip
        self.value_size, self.stride, self.padding = twin.value_size, twin.stride, twin.padding
        self.keys, self.values, self.trailing = twin.keys, twin.values, twin.trailing

    def become_internal(self) -> None:
        """Turn into an empty internal node around the same bytes: a leaf's old entries become stale ones."""
        if self.value_size != 8:
            header = BtreeNode.blank(INTERNAL_NODE, 8)._encode(0)[:HEADER_BYTES]
            self.become(BtreeNode._decode(header + self._encode(0)[HEADER_BYTES:], 0))
        self.flags, self.is_leaf, self.nr_entries = INTERNAL_NODE, False, 0

    def value(self, i: int) -> "array[int]":
        return self.values[i * self.stride : (i + 1) * self.stride]

    def live_values(self) -> "array[int]":
        return self.values[: self.nr_entries * self.stride]

    def set_value(self, i: int, words: "array[int]") -> None:
        self.values[i * self.stride : (i + 1) * self.stride] = words

    def insert_at(self, i: int, key: int, words: "array[int]") -> None:
        nr, s = self.nr_entries, self.stride
        self.keys[i + 1 : nr + 1] = self.keys[i:nr]
        self.values[(i + 1) * s : (nr + 1) * s] = self.values[i * s : nr * s]
        self.keys[i] = key
        self.values[i * s : (i + 1) * s] = words
        self.nr_entries = nr + 1

    def delete_at(self, i: int) -> None:
        """The last entry stays behind as a stale one."""
        nr, s = self.nr_entries, self.stride
        self.keys[i : nr - 1] = self.keys[i + 1 : nr]
        self.values[i * s : (nr - 1) * s] = self.values[(i + 1) * s : nr * s]
        self.nr_entries = nr - 1

    def assign(self, keys: "array[int]", values: "array[int]") -> None:
        """Make these the live entries; what lies behind them stays."""
        self.keys[: len(keys)] = keys
        self.values[: len(values)] = values
        self.nr_entries = len(keys)
