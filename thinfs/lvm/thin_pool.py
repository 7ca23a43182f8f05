"""A thin pool of LVM held against its own metadata: whether the text and the pool speak of the same devices.

Promises: a device id is never trusted by itself. A pool is sound if its transaction is the text's, or one behind with a
message pending; a volume is its device only if that was created in the transaction that the text says. Never: writes,
repairs, sends a message. Source: docs/reference/lvm.md, 7, 8 and 9.
"""

from dataclasses import dataclass

from thinfs.errors import BadMetadata, Busy, NoSuchThin, NotSupported, ThinfsError, prefixed
from thinfs.lvm.reading import Readable, ReadOnlyBlockDevice
from thinfs.lvm.thin_volume import Nodes, Seen, ThinVolume
from thinfs.lvm.volume_group import Pool, Thin
from thinfs.ondisk.superblock import FLAG_NEEDS_CHECK, METADATA_VERSION, Superblock
from thinfs.ondisk.thin import DeviceDetails
from thinfs.tools.check import Verdict, check_pool
from thinfs.tools.walk import PoolTrees
from thinfs.units import METADATA_BLOCK_BYTES, sectors_to_bytes


@dataclass(slots=True)
class ThinPool:
    """A pool that can be read. `doubts` are why it must not be written."""

    name: str  # VG/LV
    text: Pool
    metadata: Readable
    data: Readable
    superblock: Superblock
    roots: dict[int, int]
    details: dict[int, DeviceDetails]
    nodes: Nodes
    doubts: list[str]
    verified: Seen

    @property
    def block_bytes(self) -> int:
        return sectors_to_bytes(self.superblock.data_block_size)

    @property
    def nr_data_blocks(self) -> int:
        return self.superblock.data_space_map_root.nr_blocks

    def check(self) -> Verdict:
        return check_pool(ReadOnlyBlockDevice(self.metadata, self.metadata.label))

    def device(self, name: str, thin: Thin) -> DeviceDetails:
        """Of the volume VG/LV: the device that the text means, or why there is none (NoSuchThin, Busy, BadMetadata)."""
        details = self.details.get(thin.device_id)
        pending = name.rpartition("/")[2] in self.text.created and self.superblock.trans_id < self.text.transaction_id
        what = f"pool {self.name}: device {thin.device_id} of {name}"
        if details is None:
            if pending:
                raise NoSuchThin(f"{what}: not created yet: LVM was interrupted, and does so at its next change")
            raise NoSuchThin(f"{what} is not in the pool")
        if details.transaction_id != thin.transaction_id:
            raise BadMetadata(
                f"{what}: the pool created it in transaction {details.transaction_id}, the text says "
                f"{thin.transaction_id}: another volume's"
            )
        if thin.device_id not in self.roots:
            raise BadMetadata(f"{what} has no mappings")
        return details

    def volume(self, name: str, thin: Thin, size_bytes: int, origin: Readable | None) -> ThinVolume:
        self.device(name, thin)
        root = self.roots[thin.device_id]
        return ThinVolume(name, size_bytes, self.nodes, root, self.data, self.block_bytes, self.nr_data_blocks, origin)


def open_pool(name: str, text: Pool, metadata: Readable, data: Readable, *, has_volumes: bool) -> ThinPool:
    """BadMetadata, Busy or NotSupported with one line that begins with the pool's name. A pool without a volume in the
    text, at transaction 0 there, is somebody else's who makes its devices himself (Docker's direct-lvm)."""
    try:
        trees = PoolTrees.open(ReadOnlyBlockDevice(metadata, metadata.label))
        superblock = trees.superblock
        _check_features(superblock)
        _check_sizes(text, superblock, metadata, data)
        if has_volumes or text.transaction_id or text.has_messages:
            _check_transaction(text, superblock)
        roots, details = trees.roots(), trees.details()
    except ThinfsError as error:
        raise prefixed(f"pool {name}", error) from None
    doubts = []
    if superblock.flags & FLAG_NEEDS_CHECK:
        doubts.append(f"pool {name}: needs_check is set")
    if superblock.compat_ro_flags:
        doubts.append(f"pool {name}: features {superblock.compat_ro_flags:#x} that must not be written to")
    if text.has_messages:
        doubts.append(f"pool {name}: a message is pending: LVM was interrupted, and has to finish it")
    return ThinPool(name, text, metadata, data, superblock, roots, details, Nodes(trees), doubts, {})


def _check_features(superblock: Superblock) -> None:
    if superblock.version != METADATA_VERSION:
        raise NotSupported(f"metadata of version {superblock.version}, not {METADATA_VERSION}")
    if superblock.incompat_flags:
        raise NotSupported(f"unsupported incompatible features {superblock.incompat_flags:#x}")


def _check_sizes(text: Pool, superblock: Superblock, metadata: Readable, data: Readable) -> None:
    if superblock.data_block_size != text.chunk_sectors:
        raise BadMetadata(f"chunk_size {text.chunk_sectors} sectors, its metadata have {superblock.data_block_size}")
    for what, readable, nr_blocks, block_bytes in (
        ("data", data, superblock.data_space_map_root.nr_blocks, sectors_to_bytes(superblock.data_block_size)),
        ("metadata", metadata, superblock.metadata_space_map_root.nr_blocks, METADATA_BLOCK_BYTES),
    ):
        if nr_blocks * block_bytes > readable.size_bytes:
            raise BadMetadata(
                f"{nr_blocks} {what} blocks of {block_bytes} bytes, {readable.label} has {readable.size_bytes} bytes"
            )


def _check_transaction(text: Pool, superblock: Superblock) -> None:
    pool, wanted = superblock.trans_id, text.transaction_id
    if pool == wanted or (pool == wanted - 1 and text.has_messages):
        return
    raise Busy(
        f"transaction_id is {pool}, while expected {wanted}: text and pool are not of one time, and device ids are "
        "used again"
    )
