"""Snapshots beside Docker's devices: thins of their own in Docker's pool, with ids that Docker does not come to.

Promises: Docker's devices, JSON and the pool's transaction id stay as they are; the names are in one file that Docker
does not read, written whole or not at all. A name is written before its thin is made and removed after it is deleted:
what a crash leaves is a name without a thin, which `remove_snapshot` takes away.
"""

import errno
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from thinfs.docker.directory import DeviceRecord, DockerDirectory
from thinfs.docker.reading import checked_name, parse_json, read_inside
from thinfs.docker.use import change_pool
from thinfs.errors import (
    BadMetadata,
    Busy,
    Exists,
    InvalidArgument,
    NoSuchThin,
    PermissionRefused,
    from_errno,
    from_oserror,
)
from thinfs.plain_text import plain
from thinfs.pool.metadata import PoolMetadata
from thinfs.steps import drive
from thinfs.units import MAX_DEV_ID

FIRST_DEVICE_ID: Final = 1024  # Docker counts from 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    name: str
    device_id: int
    size_bytes: int
    origin: str  # hash of Docker's record
    origin_device_id: int


def snapshots_file(docker: DockerDirectory) -> Path:
    """Beside Docker's `metadata` directory: in it, Docker would take it for a device."""
    return docker.path / "devicemapper/thinfs-snapshots.json"


def read_snapshots(docker: DockerDirectory) -> dict[str, Snapshot]:
    path = snapshots_file(docker)
    try:
        values = parse_json(read_inside(docker.path, path))
        return {name: _snapshot(name, **value) for name, value in values.items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise from_errno(error.errno or errno.EIO, f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise BadMetadata(f"{path}: {error}") from None


def _snapshot(name: str, device_id: int, size_bytes: int, origin: str, origin_device_id: int) -> Snapshot:
    for number in (device_id, size_bytes, origin_device_id):
        if type(number) is not int or not 0 <= number < 1 << 64:
            raise ValueError(f"{name!r:.60}: {number!r:.60} is no number")
    checked_name(origin, "origin")
    if not is_name(name):
        raise ValueError(f"{name!r:.60}: not a name")
    return Snapshot(name, device_id, size_bytes, origin, origin_device_id)


def is_name(name: str) -> bool:
    return bool(name) and "/" not in name and not name.startswith((".", "-")) and name == plain(name)


def take_snapshot(docker: DockerDirectory, origin: DeviceRecord, name: str | None) -> Snapshot:
    """A free name is made of `origin`'s, unless given."""
    snapshots = read_snapshots(docker)
    with change_pool(docker) as metadata:
        if origin.transaction_id > metadata.transaction_id:
            raise Busy(f"device {origin.device_id} ({origin.hash}): its transaction was not finished; roll back first")
        device_id = free_device_id(docker, {device_id for device_id, _ in metadata.devices()})
        name = name or f"{_readable_name(docker, origin)}-{device_id}"
        if name in snapshots:
            raise Exists(f"{docker.path}: snapshot {name} exists already")
        if not is_name(name):
            raise InvalidArgument(f"snapshot {name!r}: not a name")
        metadata.create_snap(device_id, origin.device_id)
        snapshot = Snapshot(name, device_id, origin.size_bytes, origin.hash, origin.device_id)
        _write_snapshots(docker, {**snapshots, name: snapshot})
        try:
            drive(metadata.commit())
        except BaseException:
            _write_snapshots(docker, snapshots)
            raise
    return snapshot


def remove_snapshot(docker: DockerDirectory, name: str) -> str:
    """By name, or by device id for a thin that only the pool knows; what was done. Docker's devices are refused."""
    snapshots = read_snapshots(docker)
    found = snapshots.get(name)
    if found is None:
        if not name.isdecimal():
            raise InvalidArgument(f"{docker.path}: no snapshot {name}; there are {', '.join(snapshots) or 'none'}")
        found = next((one for one in snapshots.values() if one.device_id == int(name)), None)
    device_id = found.device_id if found is not None else int(name)
    owner = next((one.hash for one in docker.devices.values() if one.device_id == device_id), None)
    if owner is not None:
        raise PermissionRefused(f"device {device_id} is Docker's ({owner})")
    unsure = docker.why_owners_are_unknown() if found is None else None
    if unsure is not None:
        raise PermissionRefused(f"device {device_id} may be Docker's: {unsure}")
    with change_pool(docker) as metadata:
        gone = not _delete_if_there(metadata, device_id)
        if gone and found is None:
            raise NoSuchThin(f"{docker.path}: thin {device_id} does not exist")
        drive(metadata.commit())
        if found is not None:
            _write_snapshots(docker, {key: one for key, one in snapshots.items() if one != found})
    return f"removed device {device_id}" + (f", snapshot {found.name}" if found is not None else "")


def _delete_if_there(metadata: PoolMetadata, device_id: int) -> bool:
    if metadata.device_details(device_id) is None:
        return False
    drive(metadata.delete_thin(device_id))
    return True


def free_device_id(docker: DockerDirectory, in_pool: set[int]) -> int:
    """Above everything that Docker has used or says it uses next: it goes up by one and skips what it knows."""
    known = [record.device_id for record in docker.devices.values()] + [docker.next_device_id or 0]
    if docker.transaction is not None:
        known.append(docker.transaction.device_id)
    for device_id in range(max(FIRST_DEVICE_ID, max(known) + 1), MAX_DEV_ID + 1):
        if device_id not in in_pool:
            return device_id
    raise InvalidArgument(f"{docker.path}: no device id above {max(known)} is free")


def _readable_name(docker: DockerDirectory, record: DeviceRecord) -> str:
    names = [one.name for one in docker.containers if one.device_hash == record.hash]
    return names[0] if names else record.hash[:12]


def _write_snapshots(docker: DockerDirectory, snapshots: Mapping[str, Snapshot]) -> None:
    path = snapshots_file(docker)
    if snapshots:
        values = {name: {k: v for k, v in asdict(one).items() if k != "name"} for name, one in snapshots.items()}
        write_json(path, values)
    else:
        path.unlink(missing_ok=True)
        sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    """A crash leaves the old file or the new one."""
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("w", encoding="utf-8") as file:
            json.dump(value, file)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise from_oserror(error, str(path)) from None


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
