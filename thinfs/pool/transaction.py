"""What a pool's metadata is between two commits: its trees, their roots, its clock, and whether it may change.

Promises: opening writes nothing unless block 0 is all zeros and formatting is allowed; a format is one transaction
whose superblock is written last. Every changing call goes through `begin_change`. Knows no device in core: they know
it, and tell it when they change. Mirrors the upper half of the kernel's dm-thin-metadata.
Source: docs/reference/format.md, 4, 9.1.
"""

from array import array
from typing import Protocol

from thinfs.bio import LowerDevice, answers_at_once, submitter
from thinfs.blockdev import BlockDevice
from thinfs.errors import InvalidArgument, PermissionRefused
from thinfs.ondisk.superblock import SUPERBLOCK_LOCATION, Superblock, is_unformatted
from thinfs.ondisk.thin import DEVICE_DETAILS_BYTES, TIME_BITS, DeviceDetails
from thinfs.persistent.block_manager import BlockManager, write_and_flush
from thinfs.persistent.btree import Btree, ValueType, runs
from thinfs.persistent.space_map_disk import DiskSpaceMap
from thinfs.persistent.space_map_metadata import MetadataSpaceMap
from thinfs.persistent.transaction_manager import TransactionManager
from thinfs.steps import Chain, Steps, drive
from thinfs.units import MAX_METADATA_BLOCKS, METADATA_BLOCK_BYTES

Device = BlockDevice | LowerDevice


def nr_usable_metadata_blocks(device: Device) -> int:
    """Blocks of the metadata device that a space map can cover; the rest is never used."""
    return min(device.size_bytes // METADATA_BLOCK_BYTES, MAX_METADATA_BLOCKS)


class MetadataObjects:
    """Block manager, transaction manager, two space maps, and the trees over them."""

    __slots__ = ("bm", "bottom", "data_sm", "details", "mapping", "metadata_sm", "tm", "top")

    def __init__(self, tm: TransactionManager, metadata_sm: MetadataSpaceMap, data_sm: DiskSpaceMap) -> None:
        self.bm = tm.bm
        self.tm = tm
        self.metadata_sm = metadata_sm
        self.data_sm = data_sm
        mapping_type = ValueType(8, inc=self._inc_data_blocks, dec=self._dec_data_blocks, equal=_same_data_block)
        root_type = ValueType(8, inc=self._inc_subtrees, dec=self._dec_subtrees)
        self.mapping = Btree(tm, root_type, mapping_type)  # (device id, thin block) -> mapping
        self.top = Btree(tm, root_type)  # device id -> root of its tree
        self.bottom = Btree(tm, mapping_type)  # thin block -> mapping, of one device
        self.details = Btree(tm, ValueType(DEVICE_DETAILS_BYTES))

    # -- what values mean: docs/reference/format.md, 4

    def _inc_data_blocks(self, mappings: "array[int]") -> None:
        for begin, end in runs([mapping >> TIME_BITS for mapping in mappings]):
            self.data_sm.inc(begin, end)

    def _dec_data_blocks(self, mappings: "array[int]") -> None:
        for begin, end in runs([mapping >> TIME_BITS for mapping in mappings]):
            self.data_sm.dec(begin, end)

    def _inc_subtrees(self, roots: "array[int]") -> None:
        for root in roots:
            self.tm.inc(root)

    def _dec_subtrees(self, roots: "array[int]") -> None:
        for root in roots:
            drive(self.bottom.delete(root))


def _same_data_block(one: int, other: int) -> bool:
    return one >> TIME_BITS == other >> TIME_BITS


def open_or_format(
    device: Device, data_block_size_sectors: int, *, format_allowed: bool
) -> Steps[tuple[MetadataObjects, Superblock]]:
    if not nr_usable_metadata_blocks(device):
        raise InvalidArgument(f"{device.label}: {device.size_bytes} bytes, not one metadata block")
    if is_unformatted(device.read(0, METADATA_BLOCK_BYTES)):
        if not format_allowed:
            raise PermissionRefused(f"{device.label}: blank metadata, and the pool is read_only")
        return (yield from _format(device, data_block_size_sectors))
    return open_existing(device, data_block_size_sectors)


def open_existing(device: Device, data_block_size_sectors: int) -> tuple[MetadataObjects, Superblock]:
    tm = TransactionManager(BlockManager(device))
    superblock = tm.bm.read(SUPERBLOCK_LOCATION, Superblock)
    tm.bm.forget(SUPERBLOCK_LOCATION)
    if superblock.data_block_size != data_block_size_sectors:
        raise InvalidArgument(
            f"changing the data block size (from {superblock.data_block_size} to {data_block_size_sectors})"
            " is not supported"
        )
    if superblock.incompat_flags:
        raise InvalidArgument(f"{device.label}: unsupported incompatible features {superblock.incompat_flags:#x}")
    if superblock.compat_ro_flags and not getattr(device, "read_only", False):
        raise InvalidArgument(f"{device.label}: features {superblock.compat_ro_flags:#x} allow reading only")
    metadata_sm = MetadataSpaceMap.open(tm, superblock.metadata_space_map_root)
    data_sm = DiskSpaceMap(tm, superblock.data_space_map_root)
    return MetadataObjects(tm, metadata_sm, data_sm), superblock


def _format(device: Device, data_block_size_sectors: int) -> Steps[tuple[MetadataObjects, Superblock]]:
    nr_blocks = nr_usable_metadata_blocks(device)
    if nr_blocks <= 2:  # the kernel's own error for devices that end before the first trees
        raise InvalidArgument(f"{device.label}: {nr_blocks} metadata blocks are too few for a pool")
    tm = TransactionManager(BlockManager(device))
    metadata_sm = MetadataSpaceMap.create(tm, nr_blocks)
    data_sm = DiskSpaceMap.create(tm)
    objects = MetadataObjects(tm, metadata_sm, data_sm)
    mapping_root, details_root = objects.top.empty(), objects.details.empty()
    data_sm.commit()
    metadata_sm.commit()
    superblock = Superblock(
        data_space_map_root=data_sm.ll.root(),
        metadata_space_map_root=metadata_sm.ll.root(),
        data_mapping_root=mapping_root,
        device_details_root=details_root,
        data_block_size=data_block_size_sectors,
        metadata_nr_blocks=nr_blocks,
    )
    last_write = [(0, superblock.build(SUPERBLOCK_LOCATION))]
    writer = submitter(device)
    requests = [*write_and_flush(writer, tm.bm.encode_dirty()), *write_and_flush(writer, last_write)]
    yield Chain(requests, blocks=answers_at_once(device))
    tm.bm.written()
    tm.committed()
    return objects, superblock


class InCore(Protocol):
    """A device in core, as the commit that writes its record sees it."""

    dev_id: int
    in_core_nr: int
    open_count: int
    changed: bool

    @property
    def details(self) -> DeviceDetails: ...
    def leave_core(self) -> None: ...


class Transaction:
    """The state that a commit makes last and an abort throws away. Roots are metadata block numbers."""

    __slots__ = (
        "changed", "details_root", "device", "failed", "in_service", "mapping_root", "objects", "read_only", "time",
    )  # fmt: skip

    def __init__(self, device: Device, objects: MetadataObjects, superblock: Superblock) -> None:
        self.device = device
        self.objects = objects
        self.failed = False  # an abort failed: nothing works any more
        self.read_only = False
        self.in_service = False  # from the first change on, commits do something
        self.changed: set[InCore] = set()  # devices in core, since the last commit
        self.adopt(superblock)

    def adopt(self, superblock: Superblock) -> None:
        self.mapping_root = superblock.data_mapping_root
        self.details_root = superblock.device_details_root
        self.time = superblock.time

    def check_usable(self) -> None:
        if self.failed:
            raise InvalidArgument(f"{self.device.label}: the pool's metadata is closed or has failed")

    def begin_change(self) -> None:
        """Every changing call starts here. PermissionRefused when read-only, InvalidArgument after a failed abort."""
        self.in_service = True
        self.check_usable()
        if self.read_only:
            raise PermissionRefused(f"{self.device.label}: the pool's metadata is read-only")
