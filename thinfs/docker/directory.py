"""Docker's directory, as its devicemapper driver and its layer store keep it: JSON beside the pool's two files.

Promises: reads only; a file that is missing, half written or not what it should be becomes a `Damage` with its name and
what is wrong, never an end of the reading. Never: opens the pool, follows what a file says outside the directory.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar

from thinfs.docker.reading import checked_name, open_inside, parse_json, read_inside
from thinfs.errors import BackingMissing, InvalidArgument
from thinfs.units import MAX_DEV_ID

TRANSACTION_FILE: Final = "transaction-metadata"
DEVICE_SET_FILE: Final = "deviceset-metadata"
BASE: Final = "base"
INIT_SUFFIX: Final = "-init"

_LAYER_STORE: Final = "image/devicemapper/layerdb"
_IMAGES: Final = "image/devicemapper/imagedb/content/sha256"
_ID_CHARACTERS: Final = 12  # what docker ps shows of an id

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """Docker's JSON of one thin. `hash` names its file."""

    hash: str
    device_id: int
    size_bytes: int
    transaction_id: int  # the pool's, once the device is complete
    deleted: bool  # a deferred deletion that Docker has still to do


@dataclass(frozen=True, slots=True)
class Transaction:
    """What Docker noted before it created or deleted a device."""

    open_transaction_id: int
    device_hash: str
    device_id: int


@dataclass(frozen=True, slots=True)
class Container:
    id: str
    name: str
    image: str
    running: bool  # as Docker wrote it last
    device_hash: str


@dataclass(frozen=True, slots=True)
class Damage:
    file: str  # below Docker's directory
    reason: str


@dataclass(slots=True)
class DockerDirectory:
    """Filled by `read_docker_directory`; `layers` are device hash -> the images' names for it, the topmost first."""

    path: Path
    pool_files: tuple[Path, Path] | None = None  # metadata and data, where they are not the directory's (direct-lvm)
    devices: dict[str, DeviceRecord] = field(default_factory=dict)
    transaction: Transaction | None = None
    next_device_id: int | None = None
    file_system: str | None = None
    containers: list[Container] = field(default_factory=list)
    layers: dict[str, list[str]] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)  # repository:tag -> device hash of its top layer
    damages: list[Damage] = field(default_factory=list)

    @property
    def records(self) -> Path:
        return self.path / "devicemapper/metadata"

    @property
    def metadata_file(self) -> Path:
        return self.pool_files[0] if self.pool_files else self.path / "devicemapper/devicemapper/metadata"

    @property
    def data_file(self) -> Path:
        return self.pool_files[1] if self.pool_files else self.path / "devicemapper/devicemapper/data"

    def check_pool_files(self, *, metadata_only: bool = False) -> None:
        """InvalidArgument where one of them is no regular file of this directory: a link in its place leads to a file
        of somebody who has not given it to Docker."""
        for path in (self.metadata_file,) if metadata_only else (self.metadata_file, self.data_file):
            try:
                os.close(self.open_pool_file(path))
            except OSError as error:
                raise InvalidArgument(f"{path}: {error.strerror}") from None

    def open_pool_file(self, path: Path) -> int:
        """A descriptor, to read; OSError. What the caller has named himself may be anything that can be opened."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC) if self.pool_files else open_inside(self.path, path)

    def unread_records(self) -> list[str]:
        """Names of those that are there and cannot be read."""
        files = [self.path / damage.file for damage in self.damages]
        names = [file.name for file in files if file.parent == self.records]
        return [name for name in names if name not in (TRANSACTION_FILE, DEVICE_SET_FILE)]

    def why_owners_are_unknown(self) -> str | None:
        """Why a device that no record names may be Docker's all the same, or None: a host without space leaves records
        empty, a lost directory leaves none."""
        unread = self.unread_records()
        if unread:
            return f"the record {unread[0]} cannot be read"
        if not self.devices:
            return f"there are no records in {self.records.relative_to(self.path)}"
        wanted = [one.device_hash for one in self.containers] + sorted(self.layers)
        missing = [name for name in wanted if name not in self.devices]
        return f"the record {missing[0]} is missing" if missing else None

    def damaged(self, path: Path) -> bool:
        name = str(path.relative_to(self.path))
        return any(damage.file == name for damage in self.damages)

    def _parsed(self, path: Path, parse: Callable[[Any], T]) -> T | None:
        """None, and a damage, for what cannot be read; None alone for a file that is not there."""
        try:
            return parse(parse_json(read_inside(self.path, path)))
        except FileNotFoundError:
            return None
        except KeyError as error:
            reason = f"no {error}"
        except (OSError, ValueError, TypeError, AttributeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        self.damages.append(Damage(str(path.relative_to(self.path)), reason))
        return None

    def _name_in(self, path: Path, what: str) -> str | None:
        """A file that holds one name. None, and a damage, for any other; None alone for a file that is not there."""
        try:
            return checked_name(read_inside(self.path, path).decode("ascii").strip(), what)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        self.damages.append(Damage(str(path.relative_to(self.path)), reason))
        return None


def read_docker_directory(path: Path, pool_files: tuple[Path, Path] | None = None) -> DockerDirectory:
    docker = DockerDirectory(path, pool_files)
    if not (path / "devicemapper/devicemapper").is_dir() and not docker.records.is_dir():
        raise BackingMissing(f"{path}: not Docker's directory: no devicemapper/metadata")
    _read_devices(docker)
    _read_containers(docker)
    _read_images(docker)
    return docker


def _read_devices(docker: DockerDirectory) -> None:
    for path in sorted(docker.records.iterdir()) if docker.records.is_dir() else ():
        # Docker passes over names with a dot, and a writer's temporary file may have stayed behind.
        if path.name.startswith(".") or path.name.endswith(".migrated") or path.is_dir():
            continue
        if path.name == TRANSACTION_FILE:
            docker.transaction = docker._parsed(path, _transaction)
        elif path.name == DEVICE_SET_FILE:
            found = docker._parsed(path, _device_set)
            if found is not None:
                docker.next_device_id, docker.file_system = found
        else:
            record = docker._parsed(path, _record_of(path.name))
            if record is not None:
                docker.devices[path.name] = record


def _record_of(name: str) -> Callable[[Any], DeviceRecord]:
    def parse(value: Any) -> DeviceRecord:
        device_id, size = _number(value["device_id"], MAX_DEV_ID), _number(value["size"])
        return DeviceRecord(name, device_id, size, _number(value["transaction_id"]), bool(value.get("deleted")))

    return parse


def _transaction(value: Any) -> Transaction:
    name = checked_name(value["device_hash"] or BASE, "device_hash")
    return Transaction(_number(value["open_transaction_id"]), name, _number(value["device_id"], MAX_DEV_ID))


def _device_set(value: Any) -> tuple[int | None, str | None]:
    next_device_id = value.get("next_device_id")
    file_system = value.get("BaseDeviceFilesystem") or None
    if file_system is not None:
        file_system = checked_name(file_system, "BaseDeviceFilesystem")
    return None if next_device_id is None else _number(next_device_id), file_system


def _number(value: object, highest: int = (1 << 64) - 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= highest:
        raise ValueError(f"{value!r} is not a number from 0 to {highest}")
    return value


def _read_containers(docker: DockerDirectory) -> None:
    mounts = docker.path / _LAYER_STORE / "mounts"
    names: dict[str, tuple[str, str, bool]] = {}
    for path in sorted(docker.path.glob("containers/*/config.v2.json")):
        found = docker._parsed(path, _container_config)
        if found is not None:
            names[path.parent.name] = found
    known = {path.name for path in mounts.iterdir()} if mounts.is_dir() else set()
    for container_id in sorted(known | names.keys()):
        name, image, running = names.get(container_id, (container_id[:_ID_CHARACTERS], "", False))
        mount_id = mounts / container_id / "mount-id"
        device_hash = docker._name_in(mount_id, "mount-id")
        if device_hash is None:
            if not docker.damaged(mount_id):
                file = str(mount_id.relative_to(docker.path))
                docker.damages.append(Damage(file, f"missing: container {name} has no device"))
            continue
        docker.containers.append(Container(container_id, name, image, running, device_hash))


def _container_config(value: Any) -> tuple[str, str, bool]:
    config, state = value.get("Config") or {}, value.get("State") or {}
    return str(value["Name"]).lstrip("/"), str(config.get("Image", "")), bool(state.get("Running"))


def _read_images(docker: DockerDirectory) -> None:
    names: dict[str, list[str]] = {}
    for name, digest in docker._parsed(docker.path / "image/devicemapper/repositories.json", _repositories) or ():
        names.setdefault(digest.removeprefix("sha256:"), []).append(name)
    devices = {}
    for path in docker.path.glob(f"{_LAYER_STORE}/sha256/*/cache-id"):
        cache_id = docker._name_in(path, "cache-id")
        if cache_id is not None:
            devices[path.parent.name] = cache_id
    uses: dict[str, list[tuple[bool, int, str]]] = {}
    for path in sorted((docker.path / _IMAGES).glob("*")):
        chain = list(_chain_ids(docker._parsed(path, _diff_ids) or []))
        for name in names.get(path.name, [path.name[:_ID_CHARACTERS]]):
            for i, chain_id in enumerate(chain, 1):
                device = devices.get(chain_id)
                if device is None:
                    continue
                text = f"{name} layer {i} of {len(chain)}"
                uses.setdefault(device, []).append((path.name not in names, len(chain) - i, text))
                if i == len(chain):
                    docker.images[name] = device
    for device in devices.values():
        found = sorted(uses.get(device, []))
        # Images without a name are steps of a build: worth showing where nothing else has the layer.
        docker.layers[device] = [text for unnamed, _, text in found if unnamed == found[0][0]]


def _repositories(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, str(digest))
        for tags in value["Repositories"].values()
        for name, digest in tags.items()
        if "@" not in name
    ]


def _diff_ids(value: Mapping[str, Any]) -> list[str]:
    diff_ids = value["rootfs"].get("diff_ids") or []
    if not isinstance(diff_ids, list):
        raise ValueError("diff_ids is not a list")
    return [str(diff_id) for diff_id in diff_ids]


def _chain_ids(diff_ids: list[str]) -> Iterator[str]:
    """A layer is known by all the layers below it: OCI's ChainID."""
    chain_id = ""
    for diff_id in diff_ids:
        chain_id = (
            f"sha256:{sha256(f'{chain_id} {diff_id}'.encode('utf-8', 'surrogatepass')).hexdigest()}"
            if chain_id
            else str(diff_id)
        )
        yield chain_id.removeprefix("sha256:")
