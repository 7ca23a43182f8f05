"""Where one server lives: its mount directory DIR, and beside it DIR.sock, DIR.ioctl.sock, DIR.lock and DIR.log.

Promises: imports `os` and `ownership` only, because the drop-in client loads it on each of hundreds of runs. DIR alone
identifies a server. Never creates anything but the private directory of a user without a run-time one.
"""

import os

from thinfs.server.ownership import check_owner


def mount_dir(given: str | None = None) -> str:
    """DIR: the one given, else THINFS_MOUNT, else the default of the user; always absolute."""
    path = given or os.environ.get("THINFS_MOUNT")
    if path:
        return os.path.abspath(path)
    if os.geteuid() == 0:
        return "/run/thinfs"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        check_owner(runtime)
        return os.path.join(runtime, "thinfs")
    return os.path.join(_private_dir(f"/tmp/thinfs-{os.geteuid()}"), "mnt")


def _private_dir(path: str) -> str:
    """In a directory anyone may write to, only one of our own, closed to others, may hold the socket."""
    if not os.path.lexists(path):
        os.makedirs(path, 0o700, exist_ok=True)
    info = os.lstat(path)
    if info.st_uid != os.geteuid() or info.st_mode & 0o170077 != 0o040000:
        raise PermissionError(f"{path}: not a directory of uid {os.geteuid()} with mode 0700")
    return path


def socket_path(directory: str) -> str:
    return directory + ".sock"


def ioctl_socket_path(directory: str) -> str:
    return directory + ".ioctl.sock"


def lock_path(directory: str) -> str:
    return directory + ".lock"


def log_path(directory: str) -> str:
    return directory + ".log"
