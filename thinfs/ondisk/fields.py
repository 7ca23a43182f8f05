"""The construct fields that construct has not: arrays of little-endian integers at memcpy speed, and one edge.

Promises: an `IntArray` parses to `array.array` and builds from it, little-endian on disk whatever the host;
`parse` and `build` turn construct's errors into BadMetadata with the block number and the field's path.
A plain Array(Int64ul) takes 0.6 ms for one node, this takes a few microseconds.
"""

import struct
import sys
from array import array
from collections.abc import Callable, Mapping
from typing import Any

import construct

from thinfs.blockdev import Buffer
from thinfs.errors import BadMetadata

_BIG_ENDIAN = sys.byteorder == "big"
ARRAYS_ARE_LITTLE_ENDIAN = not _BIG_ENDIAN


class IntArray(construct.Construct):  # type: ignore[misc]  # construct ships no types
    """`nr(context)` integers of array type `typecode(context)`."""

    def __init__(self, typecode: Callable[[Any], str], nr: Callable[[Any], int]) -> None:
        super().__init__()
        self._typecode = typecode
        self._nr = nr

    def _parse(self, stream: Any, context: Any, path: str) -> "array[int]":
        words: array[int] = array(self._typecode(context))
        size = self._nr(context) * words.itemsize
        words.frombytes(construct.stream_read(stream, size, path))
        if _BIG_ENDIAN:
            words.byteswap()
        return words

    def _build(self, obj: Any, stream: Any, context: Any, path: str) -> Any:
        if obj.typecode != self._typecode(context) or len(obj) != self._nr(context):
            raise construct.StreamError(f"{obj.typecode}[{len(obj)}] does not fit", path=path)
        if _BIG_ENDIAN:
            obj = array(obj.typecode, obj)
            obj.byteswap()
        data = obj.tobytes()
        construct.stream_write(stream, data, len(data), path)
        return obj


def u64_array(nr: Callable[[Any], int]) -> IntArray:
    return IntArray(lambda _: "Q", nr)


def leading_integers(schema: Any) -> struct.Struct:
    """The integers that a schema begins with, as one compiled format: for blocks that are decoded by the thousand."""
    formats = []
    for field in schema.subcons:
        if not isinstance(field.subcon, construct.FormatField):
            break
        formats.append(field.subcon.fmtstr.removeprefix("<"))
    return struct.Struct("<" + "".join(formats))


def words(record: struct.Struct) -> struct.Struct:
    """The same bytes as u64, which is how a btree node holds a value of more than 8 bytes.

    `record.unpack(words.pack(*w))` are the fields of a value, `words.unpack(record.pack(*f))` its words, on any host.
    """
    nr, rest = divmod(record.size, 8)
    if rest:
        raise ValueError(f"a record of {record.size} bytes is not made of u64")
    return struct.Struct(f"<{nr}Q")


def value_typecode(value_size: int) -> str:
    """The array type whose items make up values of `value_size` bytes: u64 where they fit, then u32."""
    return "BBBBIBBBQ"[value_size & 7 or 8]


def parse(schema: Any, data: Buffer, block_nr: int, kind: str) -> Any:
    try:
        return schema.parse(data)
    except construct.ConstructError as error:
        raise BadMetadata(f"metadata block {block_nr}: {kind}: {_one_line(error)}") from None


def build(schema: Any, values: Mapping[str, Any], block_nr: int, kind: str) -> bytes:
    try:
        data: bytes = schema.build(values)
    except construct.ConstructError as error:
        raise BadMetadata(f"metadata block {block_nr}: cannot encode {kind}: {_one_line(error)}") from None
    return data


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
