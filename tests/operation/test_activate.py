"""`up`, `down` and `save` on the userspace backend: twice is once, growth, snapshots, refusals that remove nothing."""

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.thin_tools import accepted
from thinfs.dm.table import Feature
from thinfs.errors import BackingMissing, Busy, InvalidArgument, IOFailed
from thinfs.operation.activate import down, save, up
from thinfs.operation.pool_file import PoolFile, PoolSpec, VolumeSpec
from thinfs.userspace.blocking import run_on_the_spot
from thinfs.userspace.devices import DeviceMapper, open_device_mapper

MIB_SECTORS = 2048


@pytest.fixture
def file(tmp_path: Path) -> PoolFile:
    base = VolumeSpec("base", 0, 8 * MIB_SECTORS)
    snap = VolumeSpec("snap", 1, 8 * MIB_SECTORS, snapshot_of="base")
    pool = PoolSpec(
        "pool", str(tmp_path / "meta.img"), str(tmp_path / "data.img"), 4 * MIB_SECTORS, 16 * MIB_SECTORS,
        features=(Feature.SKIP_BLOCK_ZEROING, Feature.ERROR_IF_NO_SPACE), low_water_blocks=8, volumes=(snap, base),
    )  # fmt: skip
    return PoolFile("userspace", (pool,))


@pytest.fixture
async def mapper(file: PoolFile) -> AsyncIterator[DeviceMapper]:
    run_on_the_spot()
    async with open_device_mapper("/nonexistent") as made:
        yield made
    if os.path.exists(file.pools[0].metadata):  # noqa: ASYNC240
        accepted(file.pools[0].metadata)


def _with(file: PoolFile, **changes: object) -> PoolFile:
    return replace(file, pools=(replace(file.pools[0], **changes),))  # type: ignore[arg-type]


async def _names(mapper: DeviceMapper) -> set[str]:
    return {info.name for info in await mapper.list()}


async def test_up_makes_files_pool_thins_and_snapshots_and_twice_is_once(mapper: DeviceMapper, file: PoolFile) -> None:
    said: list[str] = []
    await up(mapper, file, said.append)
    assert await _names(mapper) == {"pool", "base", "snap"}
    assert [line.split(": ")[0] for line in said[-5:]] == ["pool", "base", "base", "snap", "snap"]
    device = await mapper.open("base")
    await device.write(0, b"kept")
    await device.aclose()
    said.clear()
    await up(mapper, file, said.append)
    assert said == []
    await down(mapper, file, said.append)
    assert await _names(mapper) == set()
    await up(mapper, file, said.append)
    device = await mapper.open("base")
    assert await device.read(0, 4) == b"kept"
    await device.aclose()


async def test_a_larger_size_grows_pool_and_volume(mapper: DeviceMapper, file: PoolFile) -> None:
    await up(mapper, file, lambda _: None)
    os.truncate(file.pools[0].data, 32 << 20)
    volumes = (replace(file.pools[0].volumes[1], sectors=64 * MIB_SECTORS), file.pools[0].volumes[0])
    said: list[str] = []
    await up(mapper, _with(file, data_sectors=32 * MIB_SECTORS, volumes=volumes), said.append)
    assert said == ["pool: reloaded", "base: reloaded"]
    assert (await mapper.status("pool")).split()[5] == "0/512"
    assert (await mapper.table("base")).startswith("0 131072 thin ")


async def test_a_table_that_is_refused_leaves_what_was(mapper: DeviceMapper, file: PoolFile) -> None:
    await up(mapper, file, lambda _: None)
    before = await mapper.table("pool")
    with pytest.raises(InvalidArgument):
        await up(mapper, _with(file, data_sectors=64 * MIB_SECTORS), lambda _: None)
    assert await mapper.table("pool") == before
    info = await mapper.info("pool")
    assert (info.inactive_table, info.suspended) == (False, False)


async def test_down_refuses_before_it_removes_anything(mapper: DeviceMapper, file: PoolFile) -> None:
    await up(mapper, file, lambda _: None)
    device = await mapper.open("snap")
    with pytest.raises(Busy, match="snap: open 1 times"):
        await down(mapper, file, lambda _: None)
    assert await _names(mapper) == {"pool", "base", "snap"}
    await device.aclose()
    await mapper.message("pool", "create_thin 7")
    await mapper.create("other", "0 8 thin /dev/mapper/pool 7")
    with pytest.raises(Busy, match="pool: in use by 1 more than the volumes of the file"):
        await down(mapper, file, lambda _: None)
    assert await _names(mapper) == {"pool", "base", "snap", "other"}


async def test_what_is_saved_brings_the_same_back(mapper: DeviceMapper, file: PoolFile) -> None:
    await up(mapper, file, lambda _: None)
    saved = await save(mapper, "userspace")
    (pool,) = saved.pools
    assert {(volume.name, volume.dev_id, volume.sectors) for volume in pool.volumes} == {
        ("base", 0, 8 * MIB_SECTORS), ("snap", 1, 8 * MIB_SECTORS),
    }  # fmt: skip
    assert set(pool.features) == set(file.pools[0].features)
    tables = {name: await mapper.table(name) for name in await _names(mapper)}
    said: list[str] = []
    await up(mapper, saved, said.append)
    assert said == []
    await down(mapper, saved, said.append)
    await up(mapper, saved, said.append)
    assert {name: len(await mapper.table(name)) for name in tables} == {
        name: len(table) for name, table in tables.items()
    }


async def test_files_without_a_size_are_not_made(mapper: DeviceMapper, file: PoolFile) -> None:
    with pytest.raises(BackingMissing, match=r"no such file, and no pool\.pool\.metadata_size to make it with"):
        await up(mapper, _with(file, metadata_sectors=None), lambda _: None)
    assert not os.path.exists(file.pools[0].metadata)  # noqa: ASYNC240
    assert await _names(mapper) == set()


async def test_a_read_only_volume_refuses_writes(mapper: DeviceMapper, file: PoolFile) -> None:
    volumes = (file.pools[0].volumes[1], replace(file.pools[0].volumes[0], read_only=True))
    await up(mapper, _with(file, volumes=volumes), lambda _: None)
    device = await mapper.open("snap")
    with pytest.raises(IOFailed):
        await device.write(0, b"x")
    await device.aclose()
