"""The striped target: the kernel's answers to tables good and bad, its layout, and I/O against a model."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel_backend.runner import Guest
from tests.guests import booted_6_1, guest6_1
from thinfs.errors import InvalidArgument, ThinfsError
from thinfs.userspace.blocking import run_on_the_spot
from thinfs.userspace.devices import DeviceMapper, open_device_mapper

__all__ = ["booted_6_1", "guest6_1"]

DISK_BYTES = 4 << 20
DISKS = ("98:0", "98:16", "98:32")  # as the guest calls them
A, B, C = DISKS

TABLES = [
    f"0 256 striped 2 128 {A} 0 {B} 0",
    f"0 256 striped 2 1 {A} 0 {B} 0",
    f"0 258 striped 2 3 {A} 0 {B} 0",
    f"0 256 striped 1 8 {A} 0",
    f"0 256 striped 2 8 {A} 0 {A} 128",
    f"0 384 striped 3 64 {A} 8 {B} 16 {C} 1024",
    f"0 256 striped 2 +128 {A} 0 {B} 0",
    f"0 256 striped 2 0 {A} 0 {B} 0",
    "0 256 striped 0 8",
    f"0 255 striped 2 8 {A} 0 {B} 0",
    f"0 264 striped 2 8 {A} 0 {B} 0",
    f"0 256 striped 2 256 {A} 0 {B} 0",
    f"0 256 striped 2 8 {A} 0",
    f"0 256 striped 2 8 {A} 0 {B}",
    f"0 256 striped 2 8 {A} 0 {B} 0 x",
    f"0 256 striped 2 8 {A} 0 {B} x",
    "0 256 striped",
    "0 256 striped 2",
    f"0 256 striped x 8 {A} 0 {B} 0",
    f"0 256 striped 2 x {A} 0 {B} 0",
    f"0 256 striped 2 0x80 {A} 0 {B} 0",
    f"0 256 striped 2 8 {A} 999999999 {B} 0",
    f"0 256 striped 2 8 /nosuch 0 {B} 0",
    f"0 256 striped 2 8 77:77 0 {B} 0",
    f"0 16777216000 striped 2 128 {A} 0 {B} 0",
    f"0 128 linear {C} 0\n128 256 striped 2 64 {A} 0 {B} 0",
]
STACKED = "0 768 striped 3 16 {} 64 {} 0 {} 8"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for number in DISKS:
        path = found[number] = tmp_path / number.replace(":", "-")
        with path.open("wb") as file:
            file.truncate(DISK_BYTES)
    return found


@pytest.fixture
async def mapper() -> AsyncIterator[DeviceMapper]:
    run_on_the_spot()
    async with open_device_mapper("/nonexistent") as made:
        yield made


def ours(text: str, files: dict[str, Path]) -> str:
    for number, path in files.items():
        text = text.replace(number, str(path))
    return text


def first_bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(DISK_BYTES)


async def test_tables_are_answered_as_by_kernel_6_1(
    guest6_1: Guest, mapper: DeviceMapper, files: dict[str, Path]
) -> None:
    for table in TABLES:
        try:
            guest6_1.create("s", table)
            theirs: object = (guest6_1.table("s"), guest6_1.status("s"))
            guest6_1.remove("s")
        except ThinfsError as error:
            theirs = error.errno
        try:
            await mapper.create("s", ours(table, files))
            mine: object = (await mapper.table("s"), await mapper.status("s"))
            await mapper.remove("s")
        except ThinfsError as error:
            mine = error.errno
        expected = tuple(ours(line, files) for line in theirs) if isinstance(theirs, tuple) else theirs
        assert mine == expected, table


async def test_the_layout_is_the_kernel_s(guest6_1: Guest, mapper: DeviceMapper, files: dict[str, Path]) -> None:
    data = bytes(sector % 251 for sector in range(768) for _ in range(512))
    guest6_1.create("s", STACKED.format(*DISKS))
    handle = guest6_1.open(guest6_1.node("s"))
    guest6_1.write(handle, 0, data)
    guest6_1.flush(handle)
    guest6_1.close_handle(handle)
    guest6_1.remove("s")
    await mapper.create("s", STACKED.format(*files.values()))
    device = await mapper.open("s")
    await device.write(0, data)
    assert await device.read(0, len(data)) == data
    await device.aclose()
    for image, path in zip(guest6_1.images, files.values(), strict=False):
        assert path.read_bytes() == first_bytes(image.path)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chunk=st.integers(1, 20),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 390_000), st.integers(1, 60_000), st.integers(1, 255))),
)
def test_io_at_any_place_is_that_of_one_device(
    files: dict[str, Path], chunk: int, steps: list[tuple[bool, int, int, int]]
) -> None:
    async def live() -> None:
        run_on_the_spot()
        size = 3 * chunk * 13
        async with open_device_mapper("/nonexistent") as mapper:
            places = " ".join(f"{path} {8 * index}" for index, path in enumerate(files.values()))
            await mapper.create("s", f"0 {size} striped 3 {chunk} {places}")
            device = await mapper.open("s")
            model = bytearray(size * 512)
            await device.write(0, bytes(model))
            for is_write, offset, length, value in steps:
                offset %= len(model)
                length = min(length, len(model) - offset)
                if is_write:
                    await device.write(offset, bytes([value]) * length)
                    model[offset : offset + length] = bytes([value]) * length
                else:
                    assert await device.read(offset, length) == model[offset : offset + length]
            await device.flush()
            assert await device.read(0, len(model)) == model
            await device.aclose()

    trio.run(live)


async def test_a_pool_stands_on_stripes(mapper: DeviceMapper, files: dict[str, Path]) -> None:
    a, b, c = files.values()
    await mapper.create("data", f"0 8192 striped 2 128 {a} 0 {b} 0")
    await mapper.create("p", f"0 8192 thin-pool {c} /dev/mapper/data 128 0")
    await mapper.message("p", "create_thin 0")
    await mapper.create("t", "0 2048 thin /dev/mapper/p 0")
    device = await mapper.open("t")
    await device.write(0, b"x" * (256 << 10))
    assert await device.read(100 << 10, 100) == b"x" * 100
    await device.discard(0, 128 << 10)
    assert (await mapper.status("p")).split()[5] == "2/64"
    await device.aclose()


async def test_the_targets_of_dm_snapshot_are_listed_and_refused_in_a_line(mapper: DeviceMapper) -> None:
    listed = {target.name for target in await mapper.targets()}
    assert {"snapshot", "snapshot-origin", "snapshot-merge"} <= listed
    with pytest.raises(InvalidArgument, match=r"^snapshot: thinfs has no such target"):
        await mapper.create("x", "0 8 snapshot /dev/null /dev/null P 8")
