"""Docker's directory held against its pool: which thin is whose, what it takes, what a crash has left.

Promises: one row for each thin of the pool and each record of Docker's, joined by device id; whatever does not fit is a
line in `problems`. Reads only, also a pool in use; then `in_use_by` says whose. Never: decides what to
delete (roll_back).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from thinfs.blockdev import FileDevice
from thinfs.docker.directory import BASE, INIT_SUFFIX, Container, DeviceRecord, DockerDirectory, Transaction
from thinfs.docker.snapshot import Snapshot, read_snapshots
from thinfs.docker.use import user_of
from thinfs.errors import InvalidArgument, ThinfsError
from thinfs.ondisk.superblock import FLAG_NEEDS_CHECK, Superblock
from thinfs.tools.usage import Usage, usage_of_all
from thinfs.tools.walk import steady
from thinfs.units import sectors_to_bytes


class Kind(StrEnum):
    BASE = "base"
    LAYER = "layer"
    CONTAINER = "container"
    INIT = "init"  # Docker's layer between an image and a container
    UNKNOWN = "unknown"  # a record that neither a container nor a layer names
    SNAPSHOT = "snapshot"  # of thinfs
    FOREIGN = "no record"  # in the pool only: somebody's snapshot, one that is mounted, or what a crash left


@dataclass(frozen=True, slots=True)
class Row:
    device_id: int
    kind: Kind
    names: tuple[str, ...]
    size_bytes: int | None
    record: DeviceRecord | None
    usage: Usage | None  # None: not in the pool
    container: Container | None
    pending: bool  # of the transaction that was not finished


@dataclass(frozen=True, slots=True)
class Inventory:
    docker: DockerDirectory
    superblock: Superblock
    rows: tuple[Row, ...]
    pending: Transaction | None
    problems: tuple[str, ...]
    in_use_by: str | None

    @property
    def data_block_bytes(self) -> int:
        return sectors_to_bytes(self.superblock.data_block_size)

    @property
    def nr_data_blocks(self) -> int:
        return self.superblock.data_space_map_root.nr_blocks

    @property
    def nr_used_data_blocks(self) -> int:
        return self.superblock.data_space_map_root.nr_allocated


def take_inventory(docker: DockerDirectory) -> Inventory:
    docker.check_pool_files(metadata_only=True)
    device = FileDevice(str(docker.metadata_file), read_only=True)
    try:
        superblock, usage = steady(device, lambda trees: (trees.superblock, usage_of_all(trees)))
    finally:
        device.close()
    pending = pending_transaction(docker, superblock)
    problems = []
    try:
        snapshots = read_snapshots(docker)
    except ThinfsError as error:
        snapshots = {}
        problems.append(str(error))
    rows = tuple(_rows(docker, superblock, usage, pending, snapshots))
    user = user_of(docker)
    problems += _problems(docker, superblock, rows, pending, user is not None)
    return Inventory(docker, superblock, rows, pending, tuple(problems), user)


def pending_transaction(docker: DockerDirectory, superblock: Superblock) -> Transaction | None:
    """The transaction that Docker opened and never brought to the pool."""
    transaction = docker.transaction
    return transaction if transaction and transaction.open_transaction_id > superblock.trans_id else None


def is_unfinished(record: DeviceRecord, superblock: Superblock) -> bool:
    """Docker writes the record before it raises the pool's transaction id to that of the record."""
    return record.transaction_id > superblock.trans_id


def _rows(
    docker: DockerDirectory,
    superblock: Superblock,
    usage: dict[int, Usage],
    pending: Transaction | None,
    snapshots: dict[str, Snapshot],
) -> list[Row]:
    containers = {container.device_hash: container for container in docker.containers}
    rows = []
    for record in docker.devices.values():
        container = containers.get(record.hash)
        kind, names = _whose(docker, record.hash, containers)
        unfinished = is_unfinished(record, superblock) or (pending is not None and pending.device_hash == record.hash)
        rows.append(
            Row(
                record.device_id,
                kind,
                names,
                record.size_bytes,
                record,
                usage.get(record.device_id),
                container,
                unfinished,
            )
        )
    recorded = {row.device_id for row in rows}
    for snapshot in snapshots.values():
        one = usage.get(snapshot.device_id)
        rows.append(
            Row(snapshot.device_id, Kind.SNAPSHOT, (snapshot.name,), snapshot.size_bytes, None, one, None, False)
        )
        recorded.add(snapshot.device_id)
    for device_id in usage.keys() - recorded:
        is_pending = pending is not None and pending.device_id == device_id
        rows.append(Row(device_id, Kind.FOREIGN, (), None, None, usage[device_id], None, is_pending))
    return sorted(rows, key=lambda row: (row.device_id, row.record.hash if row.record else ""))


def _whose(docker: DockerDirectory, name: str, containers: dict[str, Container]) -> tuple[Kind, tuple[str, ...]]:
    if name == BASE:
        return Kind.BASE, (BASE,)
    if name in docker.layers:
        return Kind.LAYER, tuple(docker.layers[name])
    if name in containers:
        return Kind.CONTAINER, (containers[name].name,)
    mounted = name.removesuffix(INIT_SUFFIX)
    if mounted != name and mounted in containers:
        return Kind.INIT, (containers[mounted].name,)
    return (Kind.INIT if mounted != name else Kind.UNKNOWN), (name,)


def _problems(
    docker: DockerDirectory, superblock: Superblock, rows: Iterable[Row], pending: Transaction | None, in_use: bool
) -> Iterable[str]:
    if superblock.flags & FLAG_NEEDS_CHECK:
        yield "the pool's metadata needs a check (needs_check is set)"
    if pending is not None:
        yield (
            f"unfinished transaction {pending.open_transaction_id}, the pool's is {superblock.trans_id}: "
            f"device {pending.device_id} ({pending.device_hash}); roll-back removes what is there of it"
        )
    problem = _data_problem(docker, superblock)
    if problem is not None:
        yield problem
    for damage in docker.damages:
        yield f"{damage.file}: {damage.reason}"
    owners: dict[int, str] = {}
    for row in rows:
        if row.record is None:
            if row.usage is None:
                yield f"snapshot {row.names[0]}: its device {row.device_id} is not in the pool"
            elif row.kind is Kind.FOREIGN and not row.pending and not in_use:
                unsure = docker.why_owners_are_unknown()
                advice = f"may be Docker's: {unsure}" if unsure else "`remove` deletes it"
                yield f"device {row.device_id}: in the pool, has no record; {advice}"
            continue
        name = row.record.hash
        if row.usage is None:
            yield f"device {row.device_id} ({name}): has a record, is not in the pool"
        if row.device_id in owners:
            yield f"device {row.device_id}: of two records, {owners[row.device_id]} and {name}"
        owners[row.device_id] = name
        if is_unfinished(row.record, superblock) and (pending is None or pending.device_hash != name):
            yield f"device {row.device_id} ({name}): its transaction {row.record.transaction_id} was not finished"
    for container in docker.containers:
        if container.device_hash not in docker.devices:
            yield f"container {container.name}: its device has no record ({container.device_hash})"
    highest = max(owners, default=0)
    if docker.next_device_id is not None and docker.next_device_id < highest:
        # No harm: Docker passes over the ids of its records.
        yield f"next_device_id {docker.next_device_id} is behind device {highest}: Docker did not stop cleanly"


def _data_problem(docker: DockerDirectory, superblock: Superblock) -> str | None:
    wanted = superblock.data_space_map_root.nr_blocks * sectors_to_bytes(superblock.data_block_size)
    name = docker.data_file if docker.pool_files else docker.data_file.relative_to(docker.path)
    try:
        descriptor = docker.open_pool_file(docker.data_file)
    except OSError as error:
        return f"{name}: {error.strerror}"
    with open(descriptor, "rb") as file:
        size = file.seek(0, os.SEEK_END)
    return f"{name}: {size} bytes, shorter than its pool, {wanted}" if size < wanted else None


def find_device(docker: DockerDirectory, name: str) -> DeviceRecord:
    """By a container's name or id, an image's name, or a record's hash; ids may be cut short."""
    found = {container.device_hash for container in docker.containers if container.name == name}
    found = found or {docker.images[name]} if name in docker.images else found
    found = found or {hash_ for hash_ in docker.devices if hash_ == name}
    if not found and len(name) >= 4:
        found = {one.device_hash for one in docker.containers if one.id.startswith(name)}
        found = found or {one for one in docker.devices if one.startswith(name) and not one.endswith(INIT_SUFFIX)}
    if len(found) > 1:
        raise InvalidArgument(f"{docker.path}: {name} is not unique")
    if not found:
        known = ", ".join(
            sorted([one.name for one in docker.containers] + [one for one in docker.images if ":" in one])
        )
        raise InvalidArgument(f"{docker.path}: no container or image {name}; there are {known or 'none'}")
    (device_hash,) = found
    record = docker.devices.get(device_hash)
    if record is None:
        raise InvalidArgument(f"{docker.path}: {name}: its device has no record ({device_hash})")
    return record
