"""A pool from XML, as thin_dump of either version and `thinfs dump` write it.

Promises: streams, mappings at C speed; attributes in any order, comments, declarations and blanks as XML has them; what
is missing, unknown, out of order or not a number is refused with its line. The thins come in the order of the text,
each to be read to its end before the next. Never: knows entities or elements of its own.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final

from thinfs.errors import InvalidArgument
from thinfs.ondisk.superblock import METADATA_VERSION
from thinfs.ondisk.thin import TIME_MASK, DeviceDetails
from thinfs.tools import _mappings
from thinfs.tools.ir import Part, PoolDump, PoolHeader, SharedDump, ThinDump, ThinParts
from thinfs.tools.runs import BATCH_RUNS, RUN_WORDS, RunBatch, keys_of

_CHUNK: Final = 1 << 20
_MAX_TAG: Final = 1 << 16
_SKIPPED: Final = re.compile(rb"\s+|<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^>\[]*>", re.DOTALL)
_TAG: Final = re.compile(rb"<(/?)([A-Za-z_]\w*)((?:\s+[\w:]+\s*=\s*(?:\"[^\"<]*\"|'[^'<]*'))*)\s*(/?)>")
_ATTRIBUTE: Final = re.compile(rb"([\w:]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)')")


class XmlSource:
    """`progress(nr_bytes)` hears how much was read."""

    def __init__(self, file: BinaryIO, label: str, progress: Callable[[int], None] = lambda nr_bytes: None) -> None:
        self._file = file
        self._label = label
        self._progress = progress
        self._text = b""
        self._at = 0
        self._lines = 1  # before `_text`
        self._ended = False
        self._names: set[str] = set()

    def pool(self) -> PoolDump:
        """With what is shared in the place of each reference to it; it is kept in memory."""
        header, items = self.items()
        return PoolDump(header, _expanded(items))

    def items(self) -> tuple[PoolHeader, Iterator[SharedDump | ThinParts]]:
        """In the order of the text; what is shared stands before the first reference to it."""
        name, values, closed = self._tag()
        if name != "superblock" or closed:
            raise self._wrong(f"<{name}> where <superblock> is expected")
        header = PoolHeader(
            time=self._number(values, "time"),
            trans_id=self._number(values, "transaction"),
            flags=self._number(values, "flags", 0),
            version=self._number(values, "version", METADATA_VERSION),
            data_block_size=self._number(values, "data_block_size"),
            nr_data_blocks=self._number(values, "nr_data_blocks"),
        )
        return header, self._items()

    def _items(self) -> Iterator[SharedDump | ThinParts]:
        while True:
            name, values, closed = self._tag()
            if name == "/superblock":
                break
            if name == "def":
                label = self._new_name(values)
                parts = iter(()) if closed else self._parts(f"<def> {label!r}", "/def")
                yield SharedDump(label, parts)
                for _ in parts:
                    pass
                self._names.add(label)
                continue
            if name != "device":
                raise self._wrong(f"<{name}> where <device> is expected")
            details = DeviceDetails(
                mapped_blocks=self._number(values, "mapped_blocks"),
                transaction_id=self._number(values, "transaction"),
                creation_time=self._number(values, "creation_time"),
                snapshotted_time=self._number(values, "snap_time"),
            )
            dev_id = self._number(values, "dev_id")
            parts = iter(()) if closed else self._parts(f"thin {dev_id}", "/device")
            yield ThinParts(dev_id, details, parts)
            for _ in parts:  # what the reader did not want
                pass
        if self._more_tags():
            raise self._wrong("something follows </superblock>")

    def _new_name(self, values: dict[str, str]) -> str:
        name = values.get("name")
        if name is None or name in self._names:
            raise self._wrong("<def> without a name" if name is None else f"<def> {name!r}: twice")
        return name

    def _parts(self, whose: str, end: str) -> Iterator[Part]:
        next_key = 0
        while True:
            words = array("Q", bytes(8 * RUN_WORDS * BATCH_RUNS))
            self._at, nr_runs = _mappings.parse_mappings(self._text, self._at, words, 0)
            if nr_runs:
                refused = _mappings.first_wrong(words, nr_runs, next_key)
                if refused >= 0:
                    one = list(RunBatch(words, nr_runs))[refused]
                    raise self._wrong(
                        f"{whose}: mapping of thin block {one.thin_begin}, length {one.length}, time {one.time}: "
                        f"empty, too large, or not behind the one before it"
                    )
                last = RUN_WORDS * (nr_runs - 1)
                next_key = words[last] + words[last + 2]
                yield RunBatch(words, nr_runs)
                continue
            name, values, closed = self._tag(stop_at_mapping=True)
            if name == end:
                return
            if name == "ref" and closed:
                if values.get("name") not in self._names:
                    raise self._wrong(f"{whose}: <ref> to {values.get('name')!r}, which is not there")
                yield values["name"]
                next_key = 0  # whoever puts the parts together looks at their order
            elif name:
                raise self._wrong(f"{whose}: <{name}> where a mapping is expected")

    # -- tags

    def _read(self) -> bool:
        """More text, behind what is left of the last."""
        chunk = self._file.read(_CHUNK)
        self._progress(len(chunk))
        self._lines += self._text.count(b"\n", 0, self._at)
        self._text = self._text[self._at :] + chunk
        self._at = 0
        self._ended = not chunk
        return bool(chunk)

    def _skip(self) -> None:
        while True:
            found = _SKIPPED.match(self._text, self._at)
            if found is None:
                return
            self._at = found.end()

    def _more_tags(self) -> bool:
        while True:
            self._skip()
            if self._at < len(self._text):
                return True
            if not self._read():
                return False

    def _tag(self, *, stop_at_mapping: bool = False) -> tuple[str, dict[str, str], bool]:
        """Its name, `/name` of an end; attributes; whether it is an empty element. A whole mapping is ("", {}, True)
        if there may be one, and is left where it is."""
        while True:
            self._skip()
            found = _TAG.match(self._text, self._at)
            if found is not None:
                name = found[2].decode()
                if stop_at_mapping and name in ("single_mapping", "range_mapping"):
                    words = array("Q", bytes(8 * RUN_WORDS))
                    if _mappings.parse_mappings(self._text, self._at, words, 0)[1]:
                        return "", {}, True
                    raise self._wrong(f"not a mapping: {found[0].decode(errors='replace')}")
                self._at = found.end()
                return found[1].decode() + name, _attributes(found[3]), bool(found[4])
            if len(self._text) - self._at > _MAX_TAG or not self._read():
                if self._ended and self._at == len(self._text):
                    raise self._wrong("the text ends too early")
                raise self._wrong(f"not XML of a pool: {self._text[self._at : self._at + 40]!r}")

    def _number(self, values: dict[str, str], name: str, default: int | None = None) -> int:
        text = values.get(name)
        if text is None:
            if default is None:
                raise self._wrong(f"no attribute {name!r}")
            return default
        most = _MOST.get(name, (1 << 64) - 1)
        if not (text.isascii() and text.isdecimal()) or int(text[:21]) > most:
            raise self._wrong(f"{name}={text[:40]!r}: not a number up to {most}")
        return int(text)

    def _wrong(self, what: str) -> InvalidArgument:
        line = self._lines + self._text.count(b"\n", 0, self._at)
        return InvalidArgument(f"{self._label}, line {line}: {what}")


_U32: Final = (1 << 32) - 1
_MOST: Final = {
    "time": TIME_MASK, "flags": _U32, "version": _U32, "data_block_size": _U32, "nr_data_blocks": 1 << 40,
    "dev_id": (1 << 24) - 1, "creation_time": _U32, "snap_time": _U32,
}  # fmt: skip


def _expanded(items: Iterable[SharedDump | ThinParts]) -> Iterator[ThinDump]:
    shared: dict[str, list[RunBatch]] = {}
    for item in items:
        if isinstance(item, SharedDump):
            shared[item.name] = list(_batches(item.parts, shared, item.name))
        else:
            yield ThinDump(item.dev_id, item.details, _batches(item.parts, shared, f"thin {item.dev_id}"))


def _batches(parts: Iterable[Part], shared: dict[str, list[RunBatch]], whose: str) -> Iterator[RunBatch]:
    next_key = 0
    for part in parts:
        for batch in shared[part] if isinstance(part, str) else (part,):
            begin, end = keys_of(batch)
            if begin < next_key:
                raise InvalidArgument(f"{whose}: thin block {begin} comes after {next_key - 1}")
            next_key = end
            yield batch


def _attributes(text: bytes) -> dict[str, str]:
    return {
        name.decode(errors="replace"): (one or other).decode(errors="replace")
        for name, one, other in _ATTRIBUTE.findall(text)
    }
