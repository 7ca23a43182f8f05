"""Take back what Docker began in its pool and did not finish, as Docker does when it starts.

Promises: deletes the pool's device first, its record next, the note of the transaction last, each durable before the
next, so that a crash in between leaves something that a second run finishes; a second run of a finished one does
nothing. Never: deletes a device that a finished record of Docker's names, or one it only guesses about.
"""

from pathlib import Path

from thinfs.docker.directory import TRANSACTION_FILE, DockerDirectory
from thinfs.docker.pool import is_unfinished, pending_transaction
from thinfs.docker.snapshot import sync_directory
from thinfs.docker.use import change_pool
from thinfs.errors import Busy, from_oserror
from thinfs.ondisk.superblock import Superblock
from thinfs.steps import drive


def roll_back(docker: DockerDirectory) -> list[str]:
    """One line for each thing done; none if there was nothing to do."""
    done: list[str] = []
    note = docker.records / TRANSACTION_FILE
    note_is_lost = docker.damaged(note)
    with change_pool(docker) as metadata:
        unfinished = _unfinished(docker, metadata.superblock, note_is_lost)
        if unfinished is not None:
            device_id, name = unfinished
            _refuse_what_does_not_fit(docker, metadata.superblock, device_id, name)
            if metadata.device_details(device_id) is not None:
                drive(metadata.delete_thin(device_id))
                drive(metadata.commit())
                done.append(f"deleted device {device_id} from the pool")
            # Also one that cannot be read: half a record is what the crash left of this device.
            if _remove(docker.records / name):
                done.append(f"removed the record {name} of device {device_id}")
        if note_is_lost and _remove(note):
            done.append(f"removed {TRANSACTION_FILE}, which could not be read")
        elif unfinished is not None and docker.transaction is not None and _remove(note):
            done.append(f"removed {TRANSACTION_FILE} of transaction {docker.transaction.open_transaction_id}")
    return done


def _unfinished(docker: DockerDirectory, superblock: Superblock, note_is_lost: bool) -> tuple[int, str] | None:
    """(device id, record) of the noted transaction; where the note is lost, of the one record that is one ahead of
    the pool: Docker has one transaction at a time, and writes the record before the pool's transaction id."""
    pending = pending_transaction(docker, superblock)
    if pending is not None:
        return pending.device_id, pending.device_hash
    ahead = [one for one in docker.devices.values() if one.transaction_id == superblock.trans_id + 1]
    return (ahead[0].device_id, ahead[0].hash) if note_is_lost and len(ahead) == 1 else None


def _refuse_what_does_not_fit(docker: DockerDirectory, superblock: Superblock, device_id: int, name: str) -> None:
    own = docker.devices.get(name)
    if own is not None and own.device_id != device_id:
        raise Busy(f"device {device_id}: the unfinished transaction's, but its record {name} is of {own.device_id}")
    unread = [other for other in docker.unread_records() if other != name]
    if unread:
        raise Busy(
            f"device {device_id}: the unfinished transaction's, or of the record {unread[0]}, which cannot be read"
        )
    for record in docker.devices.values():
        if record.device_id == device_id and record.hash != name and not is_unfinished(record, superblock):
            raise Busy(f"device {device_id}: the unfinished transaction's, and of the finished record {record.hash}")


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise from_oserror(error, str(path)) from None
    sync_directory(path.parent)
    return True
