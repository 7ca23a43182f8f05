"""A pool out of the intermediate representation: what thin_restore does.

Promises: the mapped blocks of a thin are counted, whatever its details say; thins may come in any order; what the
source has once for several thins is once in the target. What the
target held is lost from the first block on (metadata_writer.py).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from thinfs.blockdev import BlockDevice
from thinfs.errors import InvalidArgument
from thinfs.tools.ir import Part, PoolHeader, SharedDump, ThinParts
from thinfs.tools.metadata_writer import MetadataWriter
from thinfs.tools.node_writer import Subtree
from thinfs.tools.runs import RunBatch, keys_of
from thinfs.units import DATA_BLOCK_MAX_SECTORS, DATA_BLOCK_MULTIPLE_SECTORS


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What is said on the command line instead of what the source says."""

    trans_id: int | None = None
    data_block_size: int | None = None  # sectors
    nr_data_blocks: int | None = None

    def of(self, header: PoolHeader) -> PoolHeader:
        given = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        return replace(header, **given)


NOTHING_OVERRIDDEN: Final = Overrides()


def check_header(header: PoolHeader) -> None:
    size = header.data_block_size
    if size % DATA_BLOCK_MULTIPLE_SECTORS or not 0 < size <= DATA_BLOCK_MAX_SECTORS:
        raise InvalidArgument(
            f"data block size of {size} sectors: not a multiple of 128 up to {DATA_BLOCK_MAX_SECTORS}"
        )


def restore(
    header: PoolHeader,
    items: Iterable[SharedDump | ThinParts],
    target: BlockDevice,
    overrides: Overrides = NOTHING_OVERRIDDEN,
) -> None:
    header = overrides.of(header)
    check_header(header)
    writer = MetadataWriter(target, header)
    shared: dict[str, _Written] = {}
    for item in items:
        if isinstance(item, SharedDump):
            shared[item.name] = _write(writer, item.parts, shared, f"<def> {item.name!r}")
        else:
            written = _write(writer, item.parts, shared, f"thin {item.dev_id}")
            leaves = written.leaves or writer.leaves(())[0]
            details = replace(item.details, mapped_blocks=written.nr_mappings)
            writer.add_thin(item.dev_id, details, writer.nodes.tree(leaves))
    writer.finish()


@dataclass(frozen=True, slots=True)
class _Written:
    leaves: list[Subtree]
    nr_mappings: int
    begin: int
    end: int


def _write(writer: MetadataWriter, parts: Iterable[Part], shared: dict[str, _Written], whose: str) -> _Written:
    """Leaves of its own, and those of what it refers to between them."""
    leaves: list[Subtree] = []
    nr = begin = end = 0
    for is_name, group in groupby(parts, lambda part: isinstance(part, str)):
        if is_name:
            pieces = [shared[name] for name in group if isinstance(name, str)]
        else:
            pieces = [_own(writer, (part for part in group if isinstance(part, RunBatch)))]
        for piece in pieces:
            if not piece.leaves:
                continue
            if leaves and piece.begin < end:
                raise InvalidArgument(f"{whose}: thin block {piece.begin} comes after {end - 1}")
            begin, end = (begin if leaves else piece.begin), piece.end
            leaves += piece.leaves
            nr += piece.nr_mappings
    return _Written(leaves, nr, begin, end)


def _own(writer: MetadataWriter, batches: Iterable[RunBatch]) -> _Written:
    bounds: list[tuple[int, int]] = []

    def seen() -> Iterator[RunBatch]:
        for batch in batches:
            bounds[1:] = [keys_of(batch)]
            yield batch

    bounds.append((0, 0))
    leaves, nr = writer.leaves(seen())
    return _Written(leaves if nr else [], nr, leaves[0].lowest, bounds[-1][1])
