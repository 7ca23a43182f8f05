"""The pool file: pools and volumes by name, in TOML; read, checked and written.

    backend = "userspace" | "kernel"                          default: userspace
    [pool.NAME]
    metadata = PATH    data = PATH                            absolute; regular files may be made (see the sizes)
    metadata_size = AMOUNT    data_size = AMOUNT              to make a file with; data_size: the pool's length
    block_size = AMOUNT    low_water = AMOUNT                 64KiB, 0
    features = [FEATURE…]                                     as in a thin-pool line
    [pool.NAME.volume.NAME]
    id = NUMBER    size = AMOUNT                              dm-thin keeps no sizes: this is where they are kept
    snapshot_of = NAME    external_origin = PATH    read_only = BOOL
    AMOUNT = number and unit: s (sectors), B, KiB, MiB, GiB, TiB

Promises: what is not in this grammar is InvalidArgument, naming the key; sizes are whole sectors.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from thinfs.dm.table import Feature
from thinfs.errors import InvalidArgument, from_oserror
from thinfs.units import DATA_BLOCK_MIN_SECTORS, MAX_DEV_ID, SECTOR_BYTES

_UNITS: Final = {"s": SECTOR_BYTES, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_AMOUNT: Final = re.compile(r"([0-9]{1,18}) ?(s|B|KiB|MiB|GiB|TiB)")
BACKENDS: Final = ("userspace", "kernel")


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    name: str
    dev_id: int
    sectors: int
    snapshot_of: str | None = None  # a volume of the same pool: where it comes from if its id is not there yet
    external_origin: str | None = None
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class PoolSpec:
    name: str
    metadata: str
    data: str
    metadata_sectors: int | None = None
    data_sectors: int | None = None  # None: as large as the data device is
    block_sectors: int = DATA_BLOCK_MIN_SECTORS
    low_water_blocks: int = 0
    features: tuple[Feature, ...] = ()
    volumes: tuple[VolumeSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolFile:
    backend: str = "userspace"
    pools: tuple[PoolSpec, ...] = field(default=())


def parse_amount(text: object, key: str) -> int:
    """Sectors."""
    found = _AMOUNT.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise InvalidArgument(
            f'{key} = {text!r}: a number and a unit, as in "64KiB" or "10GiB" (s, B, KiB, MiB, GiB, TiB)'
        )
    nr_bytes = int(found[1]) * _UNITS[found[2]]
    if nr_bytes % SECTOR_BYTES:
        raise InvalidArgument(f"{key} = {text!r}: not whole sectors of {SECTOR_BYTES} bytes")
    return nr_bytes // SECTOR_BYTES


def format_amount(sectors: int) -> str:
    """In the largest unit that says it exactly."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if sectors and sectors * SECTOR_BYTES % _UNITS[unit] == 0:
            return f"{sectors * SECTOR_BYTES // _UNITS[unit]}{unit}"
    return f"{sectors}s"


class _Keys:
    """A table of the file, key by key; what nobody has asked for is refused in the end."""

    def __init__(self, table: object, where: str) -> None:
        if not isinstance(table, Mapping):
            raise InvalidArgument(f"{where}: not a table")
        self._left = dict(table)
        self._where = where

    def take(self, key: str, kind: type, default: Any = ...) -> Any:
        if key not in self._left:
            if default is ...:
                raise InvalidArgument(f"{self._where}: {key} is missing")
            return default
        value = self._left.pop(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InvalidArgument(f"{self._where}.{key} = {value!r}: not a {kind.__name__}")
        return value

    def amount(self, key: str, default: Any = ...) -> Any:
        value = self.take(key, str, None if default is not ... else ...)
        return default if value is None else parse_amount(value, f"{self._where}.{key}")

    def path(self, key: str, default: Any = ...) -> Any:
        value = self.take(key, str, default)
        if value is not default and not os.path.isabs(value):
            raise InvalidArgument(f"{self._where}.{key} = {value!r}: not an absolute path")
        return value

    def tables(self, key: str) -> Iterator[tuple[str, "_Keys"]]:
        for name, table in self.take(key, dict, {}).items():
            yield name, _Keys(table, f"{self._where}.{key}.{name}" if self._where else f"{key}.{name}")

    def end(self) -> None:
        for key in self._left:
            raise InvalidArgument(f"{self._where + '.' if self._where else ''}{key}: no such key")


def read_pool_file(path: str) -> PoolFile:
    """InvalidArgument names the file, the key and the value; the system's errors the file."""
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise from_oserror(error, path) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"{path}: {error}") from None
    try:
        return _parse(document)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error}") from None


def _parse(document: Mapping[str, Any]) -> PoolFile:
    keys = _Keys(document, "")
    backend = keys.take("backend", str, "userspace")
    if backend not in BACKENDS:
        raise InvalidArgument(f"backend = {backend!r}: {' or '.join(BACKENDS)}")
    pools = tuple(_parse_pool(name, table) for name, table in keys.tables("pool"))
    keys.end()
    names = [pool.name for pool in pools] + [volume.name for pool in pools for volume in pool.volumes]
    for name in names:
        if names.count(name) > 1:
            raise InvalidArgument(f"{name}: the name of two devices")
    return PoolFile(backend, pools)


def _parse_pool(name: str, keys: _Keys) -> PoolSpec:
    block_sectors = keys.amount("block_size", DATA_BLOCK_MIN_SECTORS)
    if block_sectors < DATA_BLOCK_MIN_SECTORS or block_sectors % DATA_BLOCK_MIN_SECTORS:
        raise InvalidArgument(f"pool.{name}.block_size: a multiple of 64KiB")
    features = []
    for word in keys.take("features", list, []):
        if word not in list(Feature):
            raise InvalidArgument(f"pool.{name}.features: {word!r}: one of {', '.join(Feature)}")
        features.append(Feature(word))
    pool = PoolSpec(
        name=name,
        metadata=keys.path("metadata"),
        data=keys.path("data"),
        metadata_sectors=keys.amount("metadata_size", None),
        data_sectors=keys.amount("data_size", None),
        block_sectors=block_sectors,
        low_water_blocks=-(-keys.amount("low_water", 0) // block_sectors),
        features=tuple(features),
        volumes=tuple(_parse_volume(volume, table) for volume, table in keys.tables("volume")),
    )
    keys.end()
    ids = [volume.dev_id for volume in pool.volumes]
    names = {volume.name for volume in pool.volumes}
    for volume in pool.volumes:
        if ids.count(volume.dev_id) > 1:
            raise InvalidArgument(f"pool.{name}: id {volume.dev_id} is that of two volumes")
        if volume.snapshot_of is not None and volume.snapshot_of not in names - {volume.name}:
            raise InvalidArgument(
                f"pool.{name}.volume.{volume.name}.snapshot_of = {volume.snapshot_of!r}: no such volume"
            )
    return pool


def _parse_volume(name: str, keys: _Keys) -> VolumeSpec:
    volume = VolumeSpec(
        name=name,
        dev_id=keys.take("id", int),
        sectors=keys.amount("size"),
        snapshot_of=keys.take("snapshot_of", str, None),
        external_origin=keys.path("external_origin", None),
        read_only=keys.take("read_only", bool, False),
    )
    keys.end()
    if not 0 <= volume.dev_id <= MAX_DEV_ID:
        raise InvalidArgument(f"volume.{name}.id = {volume.dev_id}: from 0 to {MAX_DEV_ID}")
    if not volume.sectors:
        raise InvalidArgument(f"volume.{name}.size: nothing")
    return volume


def format_pool_file(file: PoolFile) -> str:
    """What `read_pool_file` reads back as the same."""
    lines = [] if file.backend == "userspace" else [f"backend = {_quoted(file.backend)}", ""]
    for pool in file.pools:
        lines += [
            f"[pool.{_quoted(pool.name)}]",
            f"metadata = {_quoted(pool.metadata)}",
            f"data = {_quoted(pool.data)}",
        ]
        for key, sectors in (("metadata_size", pool.metadata_sectors), ("data_size", pool.data_sectors)):
            if sectors is not None:
                lines.append(f'{key} = "{format_amount(sectors)}"')
        lines.append(f'block_size = "{format_amount(pool.block_sectors)}"')
        if pool.low_water_blocks:
            lines.append(f'low_water = "{format_amount(pool.low_water_blocks * pool.block_sectors)}"')
        if pool.features:
            lines.append(f"features = [{', '.join(map(_quoted, pool.features))}]")
        lines.append("")
        for volume in pool.volumes:
            lines += [f"[pool.{_quoted(pool.name)}.volume.{_quoted(volume.name)}]", f"id = {volume.dev_id}"]
            lines.append(f'size = "{format_amount(volume.sectors)}"')
            for key, text in (("snapshot_of", volume.snapshot_of), ("external_origin", volume.external_origin)):
                if text is not None:
                    lines.append(f"{key} = {_quoted(text)}")
            lines += ["read_only = true", ""] if volume.read_only else [""]
    return "\n".join(lines)


_ESCAPES: Final = {ord('"'): '\\"', ord("\\"): "\\\\", 0x7F: "\\u007f"} | {code: f"\\u{code:04x}" for code in range(32)}


def _quoted(text: str) -> str:
    return f'"{text.translate(_ESCAPES)}"'


def ordered_volumes(volumes: Sequence[VolumeSpec]) -> list[VolumeSpec]:
    """Origins before their snapshots; InvalidArgument where volumes are snapshots of each other in a circle."""
    by_name = {volume.name: volume for volume in volumes}
    done: dict[str, VolumeSpec] = {}
    for volume in volumes:
        chain: list[VolumeSpec] = []
        while volume.name not in done and volume not in chain:
            chain.append(volume)
            if volume.snapshot_of is None:
                break
            volume = by_name[volume.snapshot_of]
        else:
            if volume.name not in done:
                raise InvalidArgument(f"{volume.name}: a snapshot of itself, by way of others")
        done.update({one.name: one for one in reversed(chain)})
    return list(done.values())
