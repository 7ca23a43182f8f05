"""The persistent objects of one pool: block manager, transaction, two space maps, three trees; format and open.

Promises: `open_or_format` writes nothing unless block 0 is all zeros and formatting is allowed; a format is one
transaction whose superblock is written last. Holds no policy and no in-core devices: pool/metadata.py does.
Mirrors the upper half of the kernel's dm-thin-metadata. Source: the format reference, sections 4, 9.1.
"""

from array import array

from thinfs.blockdev import BlockDevice
from thinfs.errors import InvalidArgument, PermissionRefused
from thinfs.ondisk.superblock import SUPERBLOCK_LOCATION, Superblock, is_unformatted
from thinfs.ondisk.thin import DEVICE_DETAILS_BYTES, TIME_BITS
from thinfs.persistent.block_manager import BlockManager, write_and_flush
from thinfs.persistent.btree import Btree, ValueType, runs
from thinfs.persistent.space_map_disk import DiskSpaceMap
from thinfs.persistent.space_map_metadata import MetadataSpaceMap
from thinfs.persistent.transaction_manager import TransactionManager
from thinfs.steps import drive
from thinfs.units import MAX_METADATA_BLOCKS, METADATA_BLOCK_BYTES


def nr_usable_metadata_blocks(device: BlockDevice) -> int:
    """Blocks of the metadata device that a space map can cover; the rest is never used."""
    return min(device.size_bytes // METADATA_BLOCK_BYTES, MAX_METADATA_BLOCKS)


class MetadataObjects:
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

    # -- what values mean, section 4

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
    device: BlockDevice, data_block_size_sectors: int, *, format_allowed: bool
) -> tuple[MetadataObjects, Superblock]:
    if not nr_usable_metadata_blocks(device):
        raise InvalidArgument(f"{device.label}: {device.size_bytes} bytes, not one metadata block")
    if is_unformatted(device.read(0, METADATA_BLOCK_BYTES)):
        if not format_allowed:
            raise PermissionRefused(f"{device.label}: blank metadata, and the pool is read_only")
        return _format(device, data_block_size_sectors)
    return open_existing(device, data_block_size_sectors)


def open_existing(device: BlockDevice, data_block_size_sectors: int) -> tuple[MetadataObjects, Superblock]:
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


def _format(device: BlockDevice, data_block_size_sectors: int) -> tuple[MetadataObjects, Superblock]:
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
    write_and_flush(device, tm.bm.encode_dirty())
    write_and_flush(device, [(0, superblock.build(SUPERBLOCK_LOCATION))])
    tm.bm.written()
    tm.committed()
    return objects, superblock
