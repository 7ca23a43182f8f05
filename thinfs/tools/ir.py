"""One pool as the offline tools pass it on: header, thins, batches of runs; from trees or text, to text or trees.

Promises: thins and batches come lazily, in the order of their ids and blocks, so that a pool of any size goes through
in little memory; a source raises where it finds damage, there and not before. Never: knows a format; see dump_formats.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from thinfs.errors import BadMetadata
from thinfs.ondisk.superblock import METADATA_VERSION
from thinfs.ondisk.thin import DeviceDetails
from thinfs.tools.runs import MappingRun, RunBatch
from thinfs.tools.walk import PoolTrees


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolHeader:
    """Of a superblock, what says something of the pool and not of where its trees lie."""

    time: int
    trans_id: int
    flags: int = 0
    version: int = METADATA_VERSION
    data_block_size: int  # sectors
    nr_data_blocks: int  # 0 of a metadata snapshot, which has no space maps


@dataclass(frozen=True, slots=True)
class ThinDump:
    dev_id: int
    details: DeviceDetails
    batches: Iterable[RunBatch]

    @property
    def runs(self) -> Iterator[MappingRun]:
        for batch in self.batches:
            yield from batch


@dataclass(frozen=True, slots=True)
class SharedDump:
    """Mappings that thins refer to by name, as dumps of 1.x have them."""

    name: str
    parts: Iterable["Part"]


@dataclass(frozen=True, slots=True)
class ThinParts:
    dev_id: int
    details: DeviceDetails
    parts: Iterable["Part"]


Part: TypeAlias = RunBatch | str  # or the name of what is shared


@dataclass(frozen=True, slots=True)
class PoolDump:
    header: PoolHeader
    thins: Iterable[ThinDump]


def header_of(trees: PoolTrees) -> PoolHeader:
    superblock = trees.superblock
    return PoolHeader(
        time=superblock.time,
        trans_id=superblock.trans_id,
        flags=superblock.flags,
        version=superblock.version,
        data_block_size=superblock.data_block_size,
        nr_data_blocks=superblock.data_space_map_root.nr_blocks,
    )


def dump_of(trees: PoolTrees, *, dev_ids: Collection[int] | None = None, mappings: bool = True) -> PoolDump:
    """Of all thins or of some; an unknown one gives a pool without it, as in thin_dump."""
    return PoolDump(header_of(trees), _thins(trees, dev_ids, mappings))


def _thins(trees: PoolTrees, only: Collection[int] | None, mappings: bool) -> Iterator[ThinDump]:
    roots, details = trees.roots(), trees.details()
    for dev_id in sorted(roots.keys() ^ details.keys()):
        where = "no details" if dev_id in roots else "no mappings"
        raise BadMetadata(f"thin {dev_id}: {where}: one of the two trees lacks it")
    for dev_id, root in roots.items():
        if only is None or dev_id in only:
            yield ThinDump(dev_id, details[dev_id], trees.batches(root) if mappings else ())
