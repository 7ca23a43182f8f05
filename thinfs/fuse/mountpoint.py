"""Whether a directory can be mounted on, and what to do when it cannot: each refusal is one line with its remedy.

Promises: a stale mount of thinfs (its server died: "Transport endpoint is not connected") is cleaned away,
anything else is left as it is. All of it may block on a foreign file system: call it in a thread.
"""

import errno
import os
import shutil
import stat
import subprocess
from typing import Final

from thinfs.dead_server import FS_TYPE
from thinfs.errors import AccessDenied, BackingMissing, Busy, OtherError, PermissionRefused, from_oserror
from thinfs.mountinfo import mounted_on

DEV_FUSE: Final = "/dev/fuse"
FUSE_CONF: Final = "/etc/fuse.conf"
FS_NAME: Final = "thinfs"


def _is_stale(directory: str) -> bool:
    try:
        os.stat(directory)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def unmount(directory: str, *, lazy: bool = False) -> None:
    """umount(8) as root, fusermount3 otherwise; Busy while something in it is open, unless lazy."""
    if os.geteuid() == 0:
        command = ["umount", *(["-l"] if lazy else []), directory]
    else:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), directory]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise BackingMissing(f"{command[0]} is missing: install {_PACKAGE[command[0]]}") from None
    except subprocess.CalledProcessError as error:
        raise Busy(f"{directory}: {(error.stderr.strip() or 'cannot be unmounted').splitlines()[-1]}") from None


_PACKAGE: Final = {"umount": "util-linux", "fusermount3": "fuse3"}


def clean_stale(directory: str) -> bool:
    """Unmount what a dead server left on `directory`; False if there was nothing of the kind."""
    cleaned = False
    while (entry := mounted_on(directory)) is not None and entry.fs_type == FS_TYPE and _is_stale(directory):
        unmount(directory, lazy=True)  # nobody serves it, and files held open in it must not keep it
        cleaned = True
    return cleaned


def prepare(path: str, *, allow_other: bool = False) -> str:
    """The resolved path of a directory that can be mounted on now, or the ThinfsError that says why not."""
    directory = os.path.realpath(path)
    clean_stale(directory)
    entry = mounted_on(directory)
    if entry is not None:
        if entry.fs_type == FS_TYPE:
            raise Busy(f"{path}: a thinfs server is already mounted there; `thinfs stop`, or another directory")
        raise Busy(f"{path}: a {entry.fs_type} file system is mounted there; choose another directory")
    _check_directory(path, directory)
    _check_dev_fuse()
    if os.geteuid() != 0:
        _check_ordinary_user(path, directory, allow_other)
    return directory


def _check_directory(path: str, directory: str) -> None:
    try:
        info = os.stat(directory)
        if info.st_uid not in (0, os.geteuid()):  # who owns it could put another in its place, with files of his own
            raise PermissionRefused(f"{path}: belongs to uid {info.st_uid}, neither to uid {os.geteuid()} nor to root")
        if not stat.S_ISDIR(info.st_mode):
            raise OtherError(errno.ENOTDIR, f"{path}: not a directory; the image files need an empty one")
        if os.listdir(directory):
            # Besides hiding them: a pool's own file in there could only be reached through this very server.
            raise OtherError(errno.ENOTEMPTY, f"{path}: not empty; mounting would hide what is in it")
    except FileNotFoundError:
        raise OtherError(errno.ENOENT, f"{path}: no such directory; make it first: mkdir -p {path}") from None
    except OSError as error:
        raise from_oserror(error, path) from None


def _check_dev_fuse() -> None:
    try:
        os.close(os.open(DEV_FUSE, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        if os.geteuid() == 0:
            remedy = "in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN"
        else:
            remedy = f"as root: chmod 0666 {DEV_FUSE}"
        raise AccessDenied(f"{DEV_FUSE} may not be opened; {remedy}") from None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise from_oserror(error, DEV_FUSE) from None
        raise BackingMissing(f"{DEV_FUSE}: this kernel has no FUSE here; as root: modprobe fuse") from None


def _check_ordinary_user(path: str, directory: str, allow_other: bool) -> None:
    if shutil.which("fusermount3") is None:
        raise BackingMissing("fusermount3 is missing: an ordinary user needs it to mount; install fuse3")
    if not os.access(directory, os.W_OK):
        raise AccessDenied(f"{path}: an ordinary user may mount only on a directory it can write to")
    if allow_other and not _user_allow_other():
        raise PermissionRefused(f"allow_other: as root, add the line user_allow_other to {FUSE_CONF}")


def _user_allow_other() -> bool:
    try:
        with open(FUSE_CONF, encoding="utf-8") as lines:
            return any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        return False
