"""What a pool file asks for, brought about on a backend of the seam; and a pool file of what there is.

Promises: `up` twice is `up` once: a device that is as it should be is left alone, one whose table differs is reloaded
(which is how pools and volumes grow), files that are there are never made anew, cut or grown. `down` removes the
devices that the file names, nothing else, and refuses before anything is removed while one is open.
"""

import os
import stat
from collections.abc import Callable, Sequence

import trio

from thinfs.dm.backend import Backend, DeviceInfo
from thinfs.dm.table import Feature, PoolArguments, TargetLine, ThinArguments, parse_decimal, parse_table, quote_word
from thinfs.errors import BackingMissing, Busy, Exists, InvalidArgument, NoSuchThin, from_oserror
from thinfs.operation.pool_file import PoolFile, PoolSpec, VolumeSpec, ordered_volumes
from thinfs.units import SECTOR_BYTES

Say = Callable[[str], None]


async def up(backend: Backend, file: PoolFile, say: Say) -> None:
    """Every pool and volume of the file, active. `say` gets a line for each that was changed."""
    for pool in file.pools:
        await _up_pool(backend, pool, say)
        for volume in ordered_volumes(pool.volumes):
            await _up_volume(backend, pool, volume, say)


async def _up_pool(backend: Backend, pool: PoolSpec, say: Say) -> None:
    for path, sectors, key in (
        (pool.metadata, pool.metadata_sectors, "metadata_size"),
        (pool.data, pool.data_sectors, "data_size"),
    ):
        if await trio.to_thread.run_sync(_make_if_missing, path, sectors, f"pool.{pool.name}.{key}"):
            say(f"{path}: made, {sectors} sectors")
    length = pool.data_sectors
    if length is None:
        length = await trio.to_thread.run_sync(_sectors_of, pool.data)
    length -= length % pool.block_sectors
    features = "".join(f" {feature}" for feature in pool.features)
    table = (
        f"0 {length} thin-pool {quote_word(pool.metadata)} {quote_word(pool.data)} {pool.block_sectors} "
        f"{pool.low_water_blocks} {len(pool.features)}{features}"
    )
    await _as_it_should_be(backend, pool.name, table, read_only=False, say=say)


async def _up_volume(backend: Backend, pool: PoolSpec, volume: VolumeSpec, say: Say) -> None:
    origin = "" if volume.external_origin is None else f" {quote_word(volume.external_origin)}"
    table = f"0 {volume.sectors} thin {quote_word('/dev/mapper/' + pool.name)} {volume.dev_id}{origin}"
    try:
        await _as_it_should_be(backend, volume.name, table, read_only=volume.read_only, say=say)
    except NoSuchThin:
        await _make_thin(backend, pool, volume)
        say(f"{volume.name}: thin {volume.dev_id} made")
        await _as_it_should_be(backend, volume.name, table, read_only=volume.read_only, say=say)


async def _make_thin(backend: Backend, pool: PoolSpec, volume: VolumeSpec) -> None:
    try:
        if volume.snapshot_of is None:
            await backend.message(pool.name, f"create_thin {volume.dev_id}")
            return
        origin = next(one for one in pool.volumes if one.name == volume.snapshot_of)
        await backend.suspend(origin.name)
        try:
            await backend.message(pool.name, f"create_snap {volume.dev_id} {origin.dev_id}")
        finally:
            with trio.CancelScope(shield=True):
                await backend.resume(origin.name)
    except Exists:
        return  # somebody else was quicker


async def _as_it_should_be(backend: Backend, name: str, table: str, *, read_only: bool, say: Say) -> None:
    present = {info.name: info for info in await backend.list()}.get(name)
    if present is None:
        await backend.create(name, table, read_only=read_only)
        say(f"{name}: active")
        return
    if present.live_table and present.read_only == read_only and await _is(backend, name, table):
        if present.suspended:
            await backend.resume(name)
            say(f"{name}: resumed")
        return
    await backend.load(name, table, read_only=read_only)
    try:
        await backend.suspend(name)
        await backend.resume(name)
    except BaseException:
        with trio.CancelScope(shield=True):  # a refused table is dropped, and the one before it goes on
            await backend.clear(name)
            if (await backend.info(name)).suspended:
                await backend.resume(name)
        raise
    say(f"{name}: reloaded")


async def _is(backend: Backend, name: str, table: str) -> bool:
    """Whether the live table says the same, device numbers and feature order apart."""
    numbers = {f"/dev/mapper/{info.name}": f"{info.major}:{info.minor}" for info in await backend.list()}
    live = parse_table(await backend.table(name))
    return [_comparable(line, numbers) for line in live] == [_comparable(line, numbers) for line in parse_table(table)]


def _comparable(line: TargetLine, numbers: dict[str, str]) -> tuple[object, ...]:
    words = [numbers.get(word) or _number_of(word) for word in line.params]
    if line.target == "thin-pool":  # the count of features and their order mean nothing
        words = [*words[:4], *sorted(words[5:])]
    return line.start_sectors, line.length_sectors, line.target, tuple(words)


def _number_of(word: str) -> str:
    """A block device's path as tables print it."""
    try:
        info = os.stat(word)
    except (OSError, ValueError):
        return word
    return f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}" if stat.S_ISBLK(info.st_mode) else os.path.abspath(word)


def _make_if_missing(path: str, sectors: int | None, key: str) -> bool:
    if os.path.exists(path):
        return False
    if sectors is None:
        raise BackingMissing(f"{path}: no such file, and no {key} to make it with")
    try:
        with open(path, "xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.truncate(sectors * SECTOR_BYTES)
    except FileExistsError:
        return False
    except OSError as error:
        raise from_oserror(error, path) from None
    return True


def _sectors_of(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return file.seek(0, os.SEEK_END) // SECTOR_BYTES
    except OSError as error:
        raise from_oserror(error, path) from None


async def down(backend: Backend, file: PoolFile, say: Say) -> None:
    """Snapshots before origins, volumes before pools. Busy, naming it, while one is open or has other users."""
    there = {info.name: info for info in await backend.list()}
    names: list[str] = []
    for pool in file.pools:
        volumes = [volume.name for volume in reversed(ordered_volumes(pool.volumes)) if volume.name in there]
        for name in volumes:
            if there[name].open_count:
                raise Busy(f"{name}: open {there[name].open_count} times")
        if pool.name in there:
            others = there[pool.name].open_count - len(volumes)
            if others > 0:
                raise Busy(f"{pool.name}: in use by {others} more than the volumes of the file")
            volumes.append(pool.name)
        names += volumes
    for name in names:
        await backend.remove(name)
        say(f"{name}: removed")


async def save(backend: Backend, backend_name: str) -> PoolFile:
    """The pools that are active and their active volumes. What is neither is left out."""
    infos = await backend.list()
    tables = {info.name: parse_table(text) for info in infos if (text := await backend.table(info.name))}
    pools = []
    for info in infos:
        lines = tables.get(info.name, ())
        if len(lines) == 1 and lines[0].target == "thin-pool":
            number = f"{info.major}:{info.minor}"
            volumes = [
                volume for other in infos if (volume := _volume(other, tables.get(other.name, ()), number)) is not None
            ]
            pools.append(_pool(info, lines[0], volumes))
    return PoolFile(backend_name, tuple(pools))


def _pool(info: DeviceInfo, line: TargetLine, volumes: Sequence[VolumeSpec]) -> PoolSpec:
    arguments = PoolArguments.parse(line.params)
    return PoolSpec(
        name=info.name,
        metadata=_path_of(arguments.metadata_dev),
        data=_path_of(arguments.data_dev),
        data_sectors=line.length_sectors,
        block_sectors=arguments.block_size_sectors(),
        low_water_blocks=arguments.low_water_blocks(),
        features=tuple(feature for feature in Feature if feature in arguments.features),
        volumes=tuple(volumes),
    )


def _volume(info: DeviceInfo, lines: Sequence[TargetLine], pool_number: str) -> VolumeSpec | None:
    if len(lines) != 1 or lines[0].target != "thin" or lines[0].params == ("Fail",):
        return None
    arguments = ThinArguments.parse(lines[0].params)
    if arguments.pool_dev != pool_number:
        return None
    origin = None if arguments.origin_dev is None else _path_of(arguments.origin_dev)
    return VolumeSpec(
        info.name, arguments.dev_id(), lines[0].length_sectors, external_origin=origin, read_only=info.read_only
    )


def _path_of(word: str) -> str:
    """A device's number as a path that means it after the next boot too, as far as there is one."""
    major, colon, minor = word.partition(":")
    if not colon or parse_decimal(major) is None or parse_decimal(minor) is None:
        return word
    link = f"/sys/dev/block/{word}"
    if not os.path.exists(link):
        raise InvalidArgument(f"{word}: a device of this server: what stands on it cannot be written down")
    return "/dev/" + os.path.basename(os.readlink(link))
