"""Whether a disk is somebody's at this moment: then its metadata may be torn, and what is read is of no one time.

Promises: nothing is opened or changed to find out, but for a lease that is given back at once. What an ordinary user
cannot know (a process of somebody else) is not found. Source: docs/reference/lvm.md, 9.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from thinfs.errors import Busy
from thinfs.lvm.disks import Group
from thinfs.lvm.image import DiskImage

SYS_BLOCK: Final = Path("/sys/block")


def users(images: Iterable[DiskImage], groups: Iterable[Group]) -> list[str]:
    """A line for each: who uses what."""
    found = []
    for image in images:
        writer = image.writer()
        if writer is not None:
            found.append(f"{image.label}: in use by {writer}")
    active = _active_uuids()
    for group in groups:
        device = active.get(group.vg.uuid.replace("-", ""))
        if device is not None:
            found.append(f"VG {group.vg.name}: active on this machine ({device}); vgchange -an {group.vg.name} first")
    return found


def refuse_in_use(images: Iterable[DiskImage], groups: Iterable[Group]) -> None:
    for line in users(images, groups):
        raise Busy(line)


def _active_uuids() -> dict[str, str]:
    """VG UUID -> a device of device-mapper's that is of it: their UUIDs are LVM- and the group's, then the volume's."""
    found: dict[str, str] = {}
    for path in SYS_BLOCK.glob("dm-*/dm/uuid"):
        with suppress(OSError):
            uuid = path.read_text().strip()
            if uuid.startswith("LVM-"):
                found.setdefault(uuid[4:36], path.parents[1].name)
    return found
