"""Whether somebody uses the pool of a Docker directory, and the one way to change that pool while nobody does.

Promises: a loop device over either of its files, as Docker's, and a lock of another thinfs are Busy (EBUSY), naming the
user. Never: changes a pool that needs a check.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thinfs.blockdev import FileDevice
from thinfs.docker.directory import DockerDirectory
from thinfs.errors import Busy, PermissionRefused, from_oserror
from thinfs.mountinfo import mount_of
from thinfs.ondisk.superblock import SUPERBLOCK_LOCATION, Superblock
from thinfs.pool.metadata import PoolMetadata
from thinfs.tools.nodes import read_block


def user_of(docker: DockerDirectory) -> str | None:
    """Who has the pool's files open: a loop device (Docker's way), or a process that holds thinfs' lock."""
    for path in (docker.metadata_file, docker.data_file):
        loop = _loop_device_over(path)
        if loop is not None:
            return loop
    descriptor = None
    try:
        descriptor = os.open(docker.metadata_file, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "another process of thinfs"
    except OSError as error:
        raise from_oserror(error, str(docker.metadata_file)) from None
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return None


def _loop_device_over(path: Path) -> str | None:
    mount = mount_of(os.path.realpath(path))
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            other = backing.read_text(errors="surrogateescape").rstrip("\n")
            # That on another file system is not asked for: a dead server's, or a network's, would not answer.
            if mount_of(other) == mount and os.path.samefile(other, path):
                return f"/dev/{backing.parents[1].name}"
        except OSError:
            continue  # detached meanwhile, or over a file that is gone
    return None


def refuse_in_use(docker: DockerDirectory) -> None:
    user = user_of(docker)
    if user is not None:
        remedy = "; stop Docker first" if user.startswith("/dev/loop") else ""
        raise Busy(f"{docker.metadata_file}: in use by {user}{remedy}")


@contextmanager
def change_pool(docker: DockerDirectory) -> Iterator[PoolMetadata]:
    """The pool's metadata, locked against every other thinfs; what is not committed is dropped."""
    docker.check_pool_files()
    refuse_in_use(docker)
    device = FileDevice(str(docker.metadata_file))
    try:
        block_size = Superblock.parse(read_block(device, SUPERBLOCK_LOCATION), SUPERBLOCK_LOCATION).data_block_size
        metadata = PoolMetadata.open(device, block_size, format_allowed=False)
        if metadata.needs_check:
            raise PermissionRefused(f"{docker.metadata_file}: needs_check is set: thin_check it first")
        yield metadata
    finally:
        device.close()
