"""What a volume or a disk holds, by its magic: to name what cannot be opened here, never to decide how to read it.

Sources: file(5)'s published magics, linux-raid's pages on md superblocks, the LUKS specifications.
"""

from typing import Final

from thinfs.errors import ThinfsError
from thinfs.lvm.reading import Readable
from thinfs.units import SECTOR_BYTES

ENCRYPTED: Final = "LUKS (encrypted)"

_MAGICS: Final = (
    (0, b"LUKS\xba\xbe", ENCRYPTED),
    (0, b"-FVE-FS-", "BitLocker (encrypted)"),
    (3, b"-FVE-FS-", "BitLocker (encrypted)"),
    (0, b"XFSB", "xfs"),
    (0x438, b"\x53\xef", "ext4"),  # ext2 and ext3 too
    (0x10040, b"_BHRfS_M", "btrfs"),
    (4086, b"SWAPSPACE2", "swap"),
    (3, b"NTFS    ", "ntfs"),
    (54, b"FAT", "fat"),
    (82, b"FAT32", "fat"),
    (0x400, b"\x10\x20\xf5\xf2", "f2fs"),
    (0x8001, b"CD001", "iso9660"),
    (512, b"LABELONE", "an LVM PV"),
    (0, b"dmvdo001", "VDO"),
    (512, b"EFI PART", "a disk with GPT"),
)
_LONGEST: Final = max(offset + len(magic) for offset, magic, _ in _MAGICS)
_MD_MAGIC: Final = bytes.fromhex("fc4e2ba9")
_MD: Final = "a member of an md array"
_LVM1: Final = (b"HM\x01\x00", b"HM\x02\x00")


def signature(readable: Readable) -> str | None:
    start = readable.read(0, min(_LONGEST, readable.size_bytes))
    for offset, magic, name in _MAGICS:
        if start[offset : offset + len(magic)] == magic:
            return name
    return "a disk with MBR" if start[510:512] == b"\x55\xaa" else None


def strange_physical_volume(readable: Readable, pv_bytes: int | None) -> str | None:
    """Something under which, or as which, a label may be seen that is not to be followed. `pv_bytes`: the size that the
    label says, if there is one: a PV inside an array does not reach to the array's superblock at the end."""
    size = readable.size_bytes
    if size < 128 << 10:
        return None
    start = readable.read(0, SECTOR_BYTES)
    if start.startswith(b"LUKS\xba\xbe"):
        return ENCRYPTED
    if start.startswith(_LVM1):
        return "LVM1 (not LVM2)"
    last_64k = (size & ~0xFFFF) - 0x10000
    for offset in (0, 4096, (size - 8192) & ~0xFFF, last_64k):
        if offset > 4096 and pv_bytes is not None and pv_bytes > offset:
            continue
        try:
            if readable.read(offset, 4) == _MD_MAGIC:
                return _MD
        except ThinfsError:
            continue
    return None
