"""The file system mounted on a loop device: is there one, where, freeze it, thaw it, as dm's own suspend does.

Promises: plain synchronous functions. `mounted_loops` never waits for a device. `freeze` waits for what was written to
reach the device, so it belongs in a process that the device does not wait for (blockdevs.agent); it refuses (None) a
file system that the server itself writes to, for that would wait for itself. Never: knows a mapped device, leaves
frozen what it did not say it froze.
"""

import errno
import fcntl
import os
import stat
import subprocess
import tempfile
from contextlib import suppress
from typing import Final

from thinfs.blockdevs.loop import LOOP_MAJOR, LoopDevice, backing_path, by_path
from thinfs.mountinfo import mounts

_FIFREEZE: Final = 0xC0045877
_FITHAW: Final = 0xC0045878
_SYSFS: Final = "/sys/fs"


def mounted_loops() -> set[int]:
    """The numbers of the loop devices with a file system mounted, in whichever mount namespace.

    ext4, xfs, f2fs, erofs and btrfs show theirs in sysfs to everybody; of others only the mounts of our own
    namespace are seen. Not by opening exclusively: somebody's mount(2) at that moment would fail.
    """
    names: set[str] = set()
    with suppress(OSError):
        for kind in os.listdir(_SYSFS):
            with suppress(OSError):
                entries = os.listdir(f"{_SYSFS}/{kind}")
                names.update(entries)
                if kind == "btrfs":
                    for entry in entries:
                        with suppress(OSError):
                            names.update(os.listdir(f"{_SYSFS}/{kind}/{entry}/devices"))
    numbers = {int(name[4:]) for name in names if name.startswith("loop") and name[4:].isdecimal()}
    return numbers | {entry.minor for entry in mounts() if entry.major == LOOP_MAJOR}


def _open_mount_point(device: LoopDevice) -> int | None:
    """A descriptor in the file system on the device: through our own mounts, else through those of another process."""
    processes = ["self", *(name for name in os.listdir("/proc") if name.isdecimal())]
    seen: set[str] = set()  # of mount namespaces
    for process in processes:
        with suppress(OSError):
            namespace = os.readlink(f"/proc/{process}/ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
        with suppress(OSError):  # the process has ended meanwhile
            for entry in mounts(process):
                if (entry.major, entry.minor) == (LOOP_MAJOR, device.number):
                    descriptor = _opened_in(entry.directory, process, device)
                    if descriptor is not None:
                        return descriptor
    return None


def _opened_in(point: str, process: str, device: LoopDevice) -> int | None:
    path = point if process == "self" else f"/proc/{process}/root{point}"
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        # Something may be mounted over it.
        if os.fstat(descriptor).st_dev == os.makedev(LOOP_MAJOR, device.number):
            return descriptor
        os.close(descriptor)
    return None


def _is_written_by(server: int, device: LoopDevice) -> bool:
    """Has the process a file open in the file system on the device, directly or below loop devices?"""
    on_device = os.makedev(LOOP_MAJOR, device.number)
    for name in os.listdir(f"/proc/{server}/fd"):
        try:
            info = os.stat(f"/proc/{server}/fd/{name}")
        except OSError:
            continue
        for _ in range(8):
            if info.st_dev == on_device:
                return True
            if not stat.S_ISBLK(info.st_mode) or os.major(info.st_rdev) != LOOP_MAJOR:
                break
            below = by_path(f"/dev/loop{os.minor(info.st_rdev)}")
            path = None if below is None else backing_path(below)
            try:
                info = os.stat(path or "")
            except OSError:
                break
    return False


def freeze(device: LoopDevice, server: int) -> int | None:
    """A descriptor to `thaw` with, which keeps the mount from going meanwhile; None where nothing was frozen.

    Afterwards what was written is on the device, its journal is empty, and writers wait.
    """
    descriptor = None if _is_written_by(server, device) else _open_mount_point(device)
    if descriptor is None:
        return None
    try:
        fcntl.ioctl(descriptor, _FIFREEZE, 0)
    except OSError as error:
        os.close(descriptor)
        # Frozen already, by somebody who will thaw it (EBUSY); read-only or without such a thing.
        if error.errno in (errno.EBUSY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EROFS):
            return None
        raise
    return descriptor


def thaw(descriptor: int) -> None:
    """The end of what `freeze` began; it may write, so the device must be running."""
    try:
        fcntl.ioctl(descriptor, _FITHAW, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:  # somebody has thawed it before us
            raise
    finally:
        os.close(descriptor)


def thaw_abandoned(device: LoopDevice) -> bool:
    """Of a server that died between a suspend and its resume: without this not even umount would let it go."""
    descriptor = _open_mount_point(device)
    if descriptor is None:
        return _thaw_where_it_is_mounted_nowhere(device)
    return _thaw(descriptor)


def _thaw_where_it_is_mounted_nowhere(device: LoopDevice) -> bool:
    """A frozen file system that was unmounted lazily lives on as long as somebody waits to write to it: mounted once
    more, which finds the same one, it can be thawed. (Its type must be given: the dead device cannot be read.)"""
    kind = next((kind for kind in os.listdir(_SYSFS) if os.path.isdir(f"{_SYSFS}/{kind}/loop{device.number}")), None)
    if kind is None:
        return False
    with tempfile.TemporaryDirectory(prefix="thinfs-thaw-") as directory:
        done = subprocess.run(["mount", "-t", kind, device.path, directory], capture_output=True, check=False)
        if done.returncode != 0:
            return False
        try:
            return _thaw(os.open(directory, os.O_RDONLY | os.O_CLOEXEC))
        finally:
            subprocess.run(["umount", directory], capture_output=True, check=False)


def _thaw(descriptor: int) -> bool:
    """Was it frozen?"""
    try:
        fcntl.ioctl(descriptor, _FITHAW, 0)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
