"""What a client or a server may leave on the machine, found by the directory of its test, and its removal."""

import os
import re
import subprocess
from pathlib import Path

from thinfs.blockdevs import loop


def mounts_of(directory: Path) -> list[str]:
    """Mount points below `directory`, the innermost first."""
    points = []
    with open("/proc/self/mountinfo", encoding="utf-8") as listing:
        for line in listing:
            point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4])
            if point.startswith(f"{directory}/"):
                points.append(point)
    return list(reversed(points))


def loop_devices_of(directory: Path) -> list[str]:
    """Loop devices over files below `directory`."""
    return [device.path for device in loop.attached_under(str(directory))]


def clear_away(directory: Path) -> None:
    """Unmount and detach what there is, lazily: after a failure nothing need be consistent."""
    left = loop_devices_of(directory)
    for point in mounts_of(directory):
        if point != str(directory / "mnt"):
            # One that is frozen and unmounted lazily would stay so, and whoever writes to it with it.
            subprocess.run(["fsfreeze", "-u", point], capture_output=True, check=False)
            subprocess.run(["umount", "-l", point], capture_output=True, check=False)
    for path in left:
        subprocess.run(["losetup", "-d", path], capture_output=True, check=False)
    for point in mounts_of(directory):
        subprocess.run(["umount", "-l", point], capture_output=True, check=False)
    for link in os.scandir("/dev/mapper") if os.path.isdir("/dev/mapper") else ():
        if link.is_symlink() and os.readlink(link.path) in left:
            os.unlink(link.path)
