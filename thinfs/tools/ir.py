"""One pool as the offline tools pass it on: header, devices, runs of mappings; made from trees, printed as text.

Promises: devices and runs come lazily, in the order of their ids and blocks, so that a pool of any size goes through in
little memory. Never: knows a format; see dump_xml and dump_text.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from thinfs.errors import BadMetadata
from thinfs.ondisk.superblock import Superblock
from thinfs.ondisk.thin import DeviceDetails
from thinfs.tools.walk import MappingRun, PoolTrees


@dataclass(frozen=True, slots=True)
class ThinDump:
    dev_id: int
    details: DeviceDetails
    runs: Iterable[MappingRun]


@dataclass(frozen=True, slots=True)
class PoolDump:
    superblock: Superblock
    thins: Iterable[ThinDump]

    @property
    def nr_data_blocks(self) -> int:
        """0 of a metadata snapshot, which has no space maps."""
        return self.superblock.data_space_map_root.nr_blocks


def dump_of(trees: PoolTrees, *, dev_id: int | None = None, mappings: bool = True) -> PoolDump:
    """Of all devices or of one; an unknown one gives a pool without devices, as in thin_dump."""
    return PoolDump(trees.superblock, _thins(trees, dev_id, mappings))


def _thins(trees: PoolTrees, only: int | None, mappings: bool) -> Iterator[ThinDump]:
    roots, details = trees.roots(), trees.details()
    for dev_id in sorted(roots.keys() ^ details.keys()):
        where = "no details" if dev_id in roots else "no mappings"
        raise BadMetadata(f"thin {dev_id}: {where}: one of the two trees lacks it")
    for dev_id, root in roots.items():
        if only is None or dev_id == only:
            yield ThinDump(dev_id, details[dev_id], trees.runs(root) if mappings else ())
