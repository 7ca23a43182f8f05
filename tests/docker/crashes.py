"""States in which a crash leaves a Docker directory, made of a clean one; and what is looked at afterwards.

Docker's order: the note of the transaction, the pool's device, its record, the pool's transaction id; to delete: the
note, the device, the record, the id. Each state is the crash after one of these steps.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from thinfs.blockdev import FileDevice
from thinfs.pool.metadata import PoolMetadata
from thinfs.steps import drive
from thinfs.tools.runs import MappingRun
from thinfs.tools.walk import PoolTrees

POOL_TRANSACTION: Final = 39
NEW_DEVICE: Final = 29
NEW_HASH: Final = "ab" * 32
B1_HASH: Final = "37988b02651449b82a42f31489e5a41b287010110c960e814b43fd5a9c8ed2a1"  # container b1's, device 28


def records(docker: Path) -> Path:
    return docker / "devicemapper/metadata"


def metadata_file(docker: Path) -> Path:
    return docker / "devicemapper/devicemapper/metadata"


def write_record(docker: Path, name: str, **values: Any) -> None:
    (records(docker) / name).write_text(json.dumps(values))


def note(docker: Path, device_id: int, name: str, transaction: int = POOL_TRANSACTION + 1) -> None:
    write_record(docker, "transaction-metadata", open_transaction_id=transaction, device_hash=name, device_id=device_id)


def new_record(docker: Path, transaction: int = POOL_TRANSACTION + 1) -> None:
    values = {"device_id": NEW_DEVICE, "size": 1 << 27, "transaction_id": transaction, "initialized": False}
    write_record(docker, NEW_HASH, **values, deleted=False)


def change_metadata(docker: Path, *changes: Callable[[PoolMetadata], object]) -> None:
    device = FileDevice(str(metadata_file(docker)))
    try:
        metadata = PoolMetadata.open(device, 128)
        for change in changes:
            change(metadata)
        drive(metadata.commit())
    finally:
        device.close()


def create_snap(docker: Path, device_id: int = NEW_DEVICE, origin: int = 2) -> None:
    change_metadata(docker, lambda metadata: metadata.create_snap(device_id, origin))


def delete(docker: Path, device_id: int) -> None:
    change_metadata(docker, lambda metadata: drive(metadata.delete_thin(device_id)))


def creation_noted(docker: Path) -> None:
    note(docker, NEW_DEVICE, NEW_HASH)


def creation_in_pool(docker: Path) -> None:
    creation_noted(docker)
    create_snap(docker)


def creation_recorded(docker: Path) -> None:
    creation_in_pool(docker)
    new_record(docker)


def creation_half_recorded(docker: Path) -> None:
    creation_in_pool(docker)
    (records(docker) / NEW_HASH).write_text('{"device_id":29,"si')


def creation_recorded_note_lost(docker: Path) -> None:
    creation_recorded(docker)
    (records(docker) / "transaction-metadata").write_bytes(b"")


def deletion_noted(docker: Path) -> None:
    note(docker, 28, B1_HASH)


def deletion_in_pool(docker: Path) -> None:
    deletion_noted(docker)
    delete(docker, 28)


def deletion_unrecorded(docker: Path) -> None:
    deletion_in_pool(docker)
    (records(docker) / B1_HASH).unlink()


CREATIONS: Final = (
    creation_noted,
    creation_in_pool,
    creation_recorded,
    creation_half_recorded,
    creation_recorded_note_lost,
)
DELETIONS: Final = (deletion_noted, deletion_in_pool, deletion_unrecorded)


def record_without_device(docker: Path) -> None:
    new_record(docker, transaction=POOL_TRANSACTION)


def device_without_record(docker: Path) -> None:
    create_snap(docker, 77)


def no_next_device_id(docker: Path) -> None:
    (records(docker) / "deviceset-metadata").unlink()


def stale_next_device_id(docker: Path) -> None:
    write_record(docker, "deviceset-metadata", next_device_id=20, BaseDeviceUUID="", BaseDeviceFilesystem="ext4")


def half_written_files(docker: Path) -> None:
    (records(docker) / "deviceset-metadata").write_text('{"next_dev')
    (records(docker) / "base").write_text("[]")
    (docker / "image/devicemapper/repositories.json").write_text("")
    for config in docker.glob("containers/*/config.v2.json"):
        config.write_text(config.read_text()[:100])


def store_gone(docker: Path) -> None:
    for path in sorted(docker.glob("image/**/*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


INCONSISTENCIES: Final = (
    record_without_device,
    device_without_record,
    no_next_device_id,
    stale_next_device_id,
    half_written_files,
    store_gone,
)


def mappings_of(docker: Path) -> dict[int, list[MappingRun]]:
    device = FileDevice(str(metadata_file(docker)), read_only=True)
    try:
        trees = PoolTrees.open(device)
        return {dev_id: list(trees.runs(root)) for dev_id, root in trees.roots().items()}
    finally:
        device.close()


def transaction_id(docker: Path) -> int:
    device = FileDevice(str(metadata_file(docker)), read_only=True)
    try:
        return PoolTrees.open(device).superblock.trans_id
    finally:
        device.close()


def digests(docker: Path) -> Mapping[str, str]:
    """Of every file but the data, whose time of change stands for it."""
    found = {}
    for path in sorted(docker.rglob("*")):
        name = str(path.relative_to(docker))
        if name == "devicemapper/devicemapper/data":
            found[name] = str(path.stat().st_mtime_ns)
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "directory"
    return found
