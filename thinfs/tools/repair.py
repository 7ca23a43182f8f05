"""A pool written anew from what can be read of it: from its superblock's roots, a metadata snapshot's or older ones.

Promises: reads the damaged device only, writes another; shared subtrees stay shared, so that the result needs no more
room than the pool had in use; what is lost is said thin by thin. The superblock's roots are taken if the tree of
devices can be read from them, else the newest candidate that is whole. Raises BadMetadata where there is nothing to
begin with.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from thinfs.blockdev import BlockDevice
from thinfs.errors import BadMetadata, InvalidArgument, ThinfsError
from thinfs.ondisk.superblock import SUPERBLOCK_LOCATION, Superblock
from thinfs.ondisk.thin import DeviceDetails
from thinfs.persistent.candidates import MetadataCensus, RootCandidate
from thinfs.tools.copier import copy_thins
from thinfs.tools.ir import PoolDump, PoolHeader, ThinDump
from thinfs.tools.metadata_writer import MetadataWriter
from thinfs.tools.nodes import NO_BOUND, read_block
from thinfs.tools.restore import Overrides, check_header
from thinfs.tools.salvage import Salvage
from thinfs.tools.walk import PoolTrees

_UNKNOWN_NR_DATA_BLOCKS: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class Rescued:
    """`origin` says which roots these are; `remarks` what had to be made up."""

    origin: str
    header: PoolHeader
    salvage: Salvage
    remarks: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        return all(thin.is_whole for thin in self.salvage.thins) and not self.remarks

    def lines(self) -> Iterator[str]:
        """What people should know: nothing of a pool that is whole."""
        if self.is_whole:
            return
        yield f"from {self.origin}"
        yield from self.remarks
        for thin in self.salvage.thins:
            for one in thin.lost:
                last = "the end" if one.last == NO_BOUND else one.last
                yield f"thin {thin.dev_id}: lost thin blocks {one.begin}..{last}: {one.why}"


def rescue(
    device: BlockDevice,
    overrides: Overrides,
    *,
    mapping_root: int | None = None,
    progress: Callable[[int], None] = lambda nr_bytes: None,
) -> Rescued:
    """Of the roots that are named, else of the best there are."""
    superblock: Superblock | None = None
    why = ""
    try:
        superblock = Superblock.parse(read_block(device, SUPERBLOCK_LOCATION), SUPERBLOCK_LOCATION)
        if mapping_root in (None, superblock.data_mapping_root):
            return _of_superblock(device, superblock, overrides, progress)
    except ThinfsError as error:
        why = f"superblock and its roots: {error}"
    census = MetadataCensus(device, progress)
    chosen = _choose(census.candidates(), mapping_root, why)
    return _of_candidate(device, census, chosen, superblock, overrides, why if mapping_root is None else "")


def _of_superblock(
    device: BlockDevice, superblock: Superblock, overrides: Overrides, progress: Callable[[int], None]
) -> Rescued:
    """Details that cannot be read come from the newest older ones of the same thins, or are made up."""
    trees = PoolTrees(device, superblock)
    roots = trees.roots()
    remarks = []
    try:
        details = trees.details()
    except ThinfsError as error:
        older = MetadataCensus(device, progress).details_of(tuple(roots))
        whence = "made up" if older is None else f"those of an older state, in block {older[0]}"
        remarks.append(f"details: {error}; times and transaction ids are {whence}")
        details = {} if older is None else older[1]
    origin = f"superblock, mapping root {superblock.data_mapping_root}"
    return _rescued(device, origin, superblock, overrides, roots, details, tuple(remarks))


def _choose(candidates: list[RootCandidate], mapping_root: int | None, why: str) -> RootCandidate:
    for one in candidates:
        if one.mapping_root == mapping_root:
            return one
    if mapping_root is not None:
        raise InvalidArgument(f"mapping root {mapping_root}: no such candidate; --list names them")
    usable = [one for one in candidates if one.thins or not one.nr_missing]
    if not usable:
        raise BadMetadata(f"{why}; and no older roots are there")
    sound = [one for one in usable if not one.nr_missing and not one.nr_disagreeing]
    return (sound or usable)[0]


def _of_candidate(
    device: BlockDevice,
    census: MetadataCensus,
    chosen: RootCandidate,
    live: Superblock | None,
    overrides: Overrides,
    why: str,
) -> Rescued:
    remarks = [why] if why else []
    known = live or chosen.superblock or next(iter(census.superblocks.values()), None)
    details = census.details(chosen.details_root)
    if details is None:
        remarks.append(f"details root {chosen.details_root}: cannot be read; times and transaction ids are made up")
    if known is None:
        if overrides.data_block_size is None:
            raise InvalidArgument("the superblock cannot be read: --data-block-size must be given")
        known = Superblock(trans_id=chosen.trans_id, time=chosen.time, data_block_size=overrides.data_block_size)
        if overrides.trans_id is None:
            remarks.append(f"transaction id {chosen.trans_id}: the highest that a thin was made in")
    roots = census.devices(chosen.mapping_root) or {}
    origin = f"{chosen.origin if chosen.origin != 'found' else 'older state'}, mapping root {chosen.mapping_root}"
    return _rescued(device, origin, known, overrides, roots, details or {}, tuple(remarks))


def _rescued(
    device: BlockDevice,
    origin: str,
    superblock: Superblock,
    overrides: Overrides,
    roots: dict[int, int],
    details: dict[int, DeviceDetails],
    remarks: tuple[str, ...],
) -> Rescued:
    nr_data_blocks = overrides.nr_data_blocks or superblock.data_space_map_root.nr_blocks
    salvage = Salvage(device, roots, details, nr_data_blocks or _UNKNOWN_NR_DATA_BLOCKS)
    header = PoolHeader(
        time=superblock.time,
        trans_id=superblock.trans_id,
        data_block_size=superblock.data_block_size,
        # The kernel grows a pool when it is loaded, and refuses one that is too large for its device.
        nr_data_blocks=nr_data_blocks or salvage.highest_data_block + 1,
    )
    header = overrides.of(header)
    check_header(header)
    return Rescued(origin, header, salvage, remarks)


def dump_of_rescued(rescued: Rescued, *, mappings: bool = True) -> PoolDump:
    return PoolDump(rescued.header, _thins(rescued.salvage, mappings))


def _thins(salvage: Salvage, mappings: bool) -> Iterator[ThinDump]:
    for thin in salvage.thins:
        if thin.root >= 0:
            yield ThinDump(thin.dev_id, thin.details, salvage.batches(thin) if mappings else ())


def write(rescued: Rescued, target: BlockDevice) -> None:
    writer = MetadataWriter(target, rescued.header)
    copy_thins(rescued.salvage, writer)
    writer.finish()
