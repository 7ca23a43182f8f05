"""A container's files at a mount point: a snapshot of its device, active in the server, mounted; and all of it undone.

Promises: Docker's devices are never active, the pool's transaction id stays; what fails half-way is taken back. The
names of the active devices say all that `unmount` needs: docker-MAJ:MIN-INODE as Docker has it, what it is, the
device id. A scratch snapshot goes when it is unmounted; a snapshot with a name stays, with what was written to it.
"""

import os
import re
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from thinfs.blockdev import FileDevice
from thinfs.cli.dmsetup import connect as connect_or_start
from thinfs.dm.table import quote_word
from thinfs.docker.directory import DockerDirectory
from thinfs.docker.pool import find_device
from thinfs.docker.snapshot import free_device_id, read_snapshots
from thinfs.docker.use import refuse_in_use
from thinfs.errors import Busy, InvalidArgument, IOFailed, PermissionRefused, from_oserror
from thinfs.ondisk.superblock import Superblock
from thinfs.server import paths
from thinfs.server.client import ControlClient, open_control_client
from thinfs.server.daemon import answers
from thinfs.tools.walk import PoolTrees, steady
from thinfs.units import bytes_to_sectors

_NAME = re.compile(r"(docker-\d+:\d+-\d+)-(scratch|snapshot)-(\d+)")
_REMOVE_ATTEMPTS = 50
_REMOVE_PAUSE_SECONDS = 0.1  # the kernel lets go of mount's own loop device a little after umount


def mount(docker: DockerDirectory, name: str, mountpoint: Path, *, writable: bool) -> str:
    """Where the files are, in one line."""
    if os.geteuid() != 0:
        raise PermissionRefused(f"mount {mountpoint}: only root can mount")
    if not mountpoint.is_dir():
        raise InvalidArgument(f"{mountpoint}: not a directory")
    docker.check_pool_files()
    directory = _server_directory()
    return trio.run(_mount, docker, name, mountpoint, writable, directory)


async def _mount(docker: DockerDirectory, name: str, mountpoint: Path, writable: bool, directory: str) -> str:
    prefix = device_prefix(docker)
    pool = f"{prefix}-pool"
    if not answers(directory) or pool not in await _active(directory):
        refuse_in_use(docker)
        _start(directory)
    superblock, in_pool = steady_pool(docker)
    origin, size_bytes, is_snapshot = _origin(docker, name, superblock)
    async with open_control_client(paths.socket_path(directory)) as server, AsyncExitStack() as undo:
        if pool not in await _active(directory):
            await server.create(pool, _pool_table(docker, superblock))
            undo.push_async_callback(server.remove, pool)
        if is_snapshot and writable:
            device_id, thin = origin, f"{prefix}-snapshot-{origin}"
        else:
            device_id = free_device_id(docker, in_pool)
            thin = f"{prefix}-scratch-{device_id}"
            await _create_snap(server, pool, device_id, origin, f"{prefix}-snapshot-{origin}")
            undo.push_async_callback(server.message, pool, f"delete {device_id}")
        await server.create(thin, f"0 {bytes_to_sectors(size_bytes)} thin /dev/mapper/{pool} {device_id}")
        undo.push_async_callback(_remove, server, thin)
        _run_mount(docker, os.path.join(directory, thin), thin, mountpoint, writable)
        undo.pop_all()
    return f"{name} is at {mountpoint}, its files below {mountpoint}/rootfs (device {device_id})"


def steady_pool(docker: DockerDirectory) -> tuple[Superblock, set[int]]:
    """The pool's superblock and the ids of its thins, whoever uses it."""

    def read(trees: PoolTrees) -> tuple[Superblock, set[int]]:
        return trees.superblock, set(trees.roots())

    device = FileDevice(str(docker.metadata_file), read_only=True)
    try:
        return steady(device, read)
    finally:
        device.close()


def device_prefix(docker: DockerDirectory) -> str:
    """How Docker begins the names of its devices."""
    info = os.stat(docker.path / "devicemapper")
    return f"docker-{os.major(info.st_dev)}:{os.minor(info.st_dev)}-{info.st_ino}"


def _origin(docker: DockerDirectory, name: str, superblock: Superblock) -> tuple[int, int, bool]:
    """Device id, size and whether it is a snapshot with a name."""
    snapshot = read_snapshots(docker).get(name)
    if snapshot is not None:
        return snapshot.device_id, snapshot.size_bytes, True
    record = find_device(docker, name)
    if record.transaction_id > superblock.trans_id:
        raise Busy(f"{name}: the transaction of its device {record.device_id} was not finished; roll back first")
    return record.device_id, record.size_bytes, False


def _pool_table(docker: DockerDirectory, superblock: Superblock) -> str:
    """As Docker's; not longer than the pool is, so that it stays as large as it is."""
    length = superblock.data_space_map_root.nr_blocks * superblock.data_block_size
    files = f"{quote_word(str(docker.metadata_file))} {quote_word(str(docker.data_file))}"
    return f"0 {length} thin-pool {files} {superblock.data_block_size} 32768 1 skip_block_zeroing"


async def _create_snap(server: ControlClient, pool: str, device_id: int, origin: int, active: str) -> None:
    """A snapshot with a name may be mounted as it is snapshotted: then it is suspended meanwhile."""
    suspended = active in [info.name for info in await server.list()]
    if suspended:
        await server.suspend(active)
    try:
        await server.message(pool, f"create_snap {device_id} {origin}")
    finally:
        if suspended:
            await server.resume(active)


def _run_mount(docker: DockerDirectory, file: str, thin: str, mountpoint: Path, writable: bool) -> None:
    device = f"/dev/mapper/{thin}"
    # A stranger's files: none of them gives its owner's rights away, or is a device of this machine.
    options = ["rw" if writable else "ro", "nosuid", "nodev"]
    if docker.file_system == "xfs":
        options.append("nouuid")  # the container itself may be mounted, and has the same
    if not os.path.exists(device):
        device = file
        options.append("loop")
    # The thin is writable even for a mount that is not: a crash has left a journal to replay, into the snapshot.
    _system("mount", "-o", ",".join(options), "--", device, str(mountpoint))


def _system(*command: str) -> None:
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if run.returncode != 0:
        why = " ".join(run.stderr.split()) or f"exit status {run.returncode}"
        raise IOFailed(f"{command[0]} {command[-1]}: {why}")


def unmount(mountpoint: Path) -> str:
    """What was done, in one line."""
    try:
        device = os.stat(mountpoint).st_dev
        backing = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/loop/backing_file")
        file = Path(backing.read_text(errors="surrogateescape").rstrip("\n")) if os.path.ismount(mountpoint) else None
    except FileNotFoundError:
        file = None
    except OSError as error:
        raise from_oserror(error, str(mountpoint)) from None
    match = _NAME.fullmatch(file.name) if file is not None else None
    if file is None or match is None:
        raise InvalidArgument(f"{mountpoint}: not mounted by thinfs docker mount")
    _system("umount", "--", str(mountpoint))
    directory = str(file.parent)
    if not answers(directory):
        raise IOFailed(f"{mountpoint}: unmounted, but its server is gone: device {match[3]} is still in the pool")
    return trio.run(_take_down, directory, match[1], match[0], int(match[3]), match[2] == "scratch")


async def _take_down(directory: str, prefix: str, thin: str, device_id: int, scratch: bool) -> str:
    pool = f"{prefix}-pool"
    async with open_control_client(paths.socket_path(directory)) as server:
        await _remove(server, thin)
        if scratch:
            await server.message(pool, f"delete {device_id}")
        if not any(info.name.startswith(f"{prefix}-") and info.name != pool for info in await server.list()):
            await server.remove(pool)
    return f"device {device_id} {'removed' if scratch else 'kept'}"


async def _remove(server: ControlClient, thin: str) -> None:
    for attempt in range(_REMOVE_ATTEMPTS):
        try:
            return await server.remove(thin)
        except Busy:
            if attempt == _REMOVE_ATTEMPTS - 1:
                raise
            await trio.sleep(_REMOVE_PAUSE_SECONDS)


async def _active(directory: str) -> list[str]:
    async with open_control_client(paths.socket_path(directory)) as server:
        return [info.name for info in await server.list()]


def _server_directory() -> str:
    try:
        return paths.mount_dir()
    except OSError as error:
        raise from_oserror(error, str(error.filename or error)) from None


def _start(directory: str) -> None:
    try:
        connect_or_start(directory).close()
    except OSError as error:
        raise from_oserror(error, f"no server for {directory}") from None
