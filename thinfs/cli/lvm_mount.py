"""A volume of an LVM disk mounted: a server for it alone, then the kernel's mount (root) or fuse2fs (anybody, ext).

Promises: read-only, without a replay of the journal, unless there is an overlay or `--rw`; what fails half-way is taken
back. The name of the mounted file says all that `unmount` needs: the directory of the server, DIR-lvm-NUMBER.
"""

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import trio

from thinfs.cli.lvm_serve import Wanted, choose, start
from thinfs.cli.serve import directory_of, stop_server
from thinfs.errors import BackingMissing, Busy, InvalidArgument, IOFailed, NotSupported
from thinfs.lvm.opening import open_volumes
from thinfs.lvm.signatures import signature
from thinfs.mountinfo import mounted_on
from thinfs.server.daemon import answers, await_end, log_to_stderr

_MARK: Final = "-lvm-"
_STOP_ATTEMPTS: Final = 100
_STOP_PAUSE_SECONDS: Final = 0.1  # fuse2fs and the kernel's loop device let go a little after the mount is gone
# without a replay of the journal: there is nothing that it could be written to
_READ_ONLY: Final[Mapping[str, Sequence[str]]] = {
    "ext4": ("noload",), "xfs": ("norecovery", "nouuid"), "btrfs": ("nologreplay",),
}  # fmt: skip
_KERNELS_NAME: Final[Mapping[str, str]] = {"fat": "vfat", "ntfs": "ntfs3"}
_WRITABLE: Final[Mapping[str, Sequence[str]]] = {"xfs": ("nouuid",)}


def mount(images: Sequence[str], name: str, mountpoint: str, overlay: str | None, *, writable: bool) -> str:
    """What was done, in one line."""
    wanted = Wanted.by(images, [name], overlay, writable=writable, loop_devices=False)
    target = os.path.realpath(mountpoint)
    if not os.path.isdir(target):
        raise InvalidArgument(f"{mountpoint}: not a directory")
    with open_volumes(images) as (volumes, _):
        ((volume,), _) = choose(volumes, wanted)
        if writable and volume.read_only:
            raise InvalidArgument(f"{volume.label}: LVM permits no writing to it")
        kind, label, file_name = signature(volumes.open(volume)), volume.label, volumes.file_name(volume)
    command = _command(kind, label, overlay is not None or writable)
    directory = f"{directory_of(None)}{_MARK}{secrets.token_hex(4)}"
    log_to_stderr()
    start(directory, wanted)
    try:
        _run(*command, f"{directory}/{file_name}", target)
    except BaseException:
        _stop(directory)
        raise
    return f"{label} is at {mountpoint}: {kind}, {'writable' if overlay or writable else 'read-only'}"


def _command(kind: str | None, label: str, writable: bool) -> list[str]:
    """What mounts it; the file and the mount point come behind."""
    if kind is None or kind.startswith(("a ", "an ", "LUKS", "BitLocker", "VDO")) or kind == "swap":
        raise NotSupported(f"{label}: holds {kind or 'no file system that is known here'}; serve or export it")
    options = ["rw", *_WRITABLE.get(kind, ())] if writable else ["ro", *_READ_ONLY.get(kind, ())]
    if os.geteuid() == 0:
        return ["mount", "-t", _KERNELS_NAME.get(kind, kind), "-o", ",".join(["loop", *options]), "--"]
    if kind != "ext4":
        raise NotSupported(f"{label}: {kind}: only root mounts it; serve or export it")
    if shutil.which("fuse2fs") is None:
        raise BackingMissing("fuse2fs is missing: an ordinary user needs it to mount ext4; install fuse2fs")
    return ["fuse2fs", "-o", "rw,fakeroot" if writable else "ro,norecovery,fakeroot"]


def _run(*command: str) -> None:
    file = command[-2]
    if command[0] == "fuse2fs":
        command = (*command[:2], f"{command[2]},fsname={file}", *command[3:])
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if run.returncode != 0:
        why = " ".join((run.stderr or run.stdout).split()) or f"exit status {run.returncode}"
        raise IOFailed(f"{command[0]} {command[-1]}: {why}")


def unmount(mountpoint: str) -> str:
    target = os.path.realpath(mountpoint)
    file = _mounted_file(target)
    directory, name = os.path.split(file)
    if _MARK not in os.path.basename(directory):
        raise InvalidArgument(f"{mountpoint}: not mounted by thinfs lvm mount")
    command = ["umount", "--"] if os.geteuid() == 0 else ["fusermount3", "-u", "--"]
    run = subprocess.run([*command, target], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if run.returncode != 0:
        raise Busy(f"{mountpoint}: {' '.join(run.stderr.split()) or 'cannot be unmounted'}")
    _stop(directory)
    return f"{mountpoint}: unmounted, {name} is served no more"


def _mounted_file(target: str) -> str:
    entry = mounted_on(target)
    if entry is None:
        return ""
    if not entry.source.startswith("/dev/loop"):
        return entry.source
    try:
        backing = Path(f"/sys/block/{os.path.basename(entry.source)}/loop/backing_file").read_text(
            errors="surrogateescape"
        )
    except OSError:
        return ""
    return backing.rstrip("\n")


def _stop(directory: str) -> None:
    for _ in range(_STOP_ATTEMPTS):
        if not answers(directory):
            break
        try:
            trio.run(stop_server, directory, False)
            break
        except Busy:
            time.sleep(_STOP_PAUSE_SECONDS)
    else:
        raise Busy(f"{directory}: still in use: its server lives on; thinfs stop --mount {directory}")
    await_end(directory)
    for suffix in (".lock", ".log", ".sock"):
        Path(directory + suffix).unlink(missing_ok=True)
