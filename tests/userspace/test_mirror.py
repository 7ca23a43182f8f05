"""The mirror target: kernel 6.1's answers to tables, copying beside writes, suspends, legs that fail."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from thinfs.errors import IOFailed, ThinfsError
from thinfs.userspace.blocking import run_on_the_spot
from thinfs.userspace.devices import DeviceMapper, open_device_mapper

DISK_BYTES = 8 << 20
SECTORS = 8192
REGION = 1024 * 512

# What kernel 6.1.176 with dm-mirror answered: the table and the status once all is copied, or the errno.
SEEN = {
    "core 1 1024 2 A 0 B 0": ("core 1 1024 2 A 0 B 0", "2 A B 8/8 1 AA 1 core"),
    "core 2 1024 nosync 2 A 0 B 0 1 handle_errors": (
        "core 2 1024 nosync 2 A 0 B 0 1 handle_errors",
        "2 A B 8/8 1 AA 1 core",
    ),
    "core 2 1024 sync 2 A 0 B 0": ("core 2 1024 sync 2 A 0 B 0", "2 A B 8/8 1 AA 1 core"),
    "core 1 1024 2 A 8 B 16 1 handle_errors": ("core 1 1024 2 A 8 B 16 1 handle_errors", "2 A B 8/8 1 AA 1 core"),
    "core 1 4 2 A 0 B 0": ("core 1 4 2 A 0 B 0", "2 A B 2048/2048 1 AA 1 core"),
    "core 1 1024 3 A 0 B 0 C 0": ("core 1 1024 3 A 0 B 0 C 0", "3 A B C 8/8 1 AAA 1 core"),
    "core 1 1024 2 A 0 B 0 2 handle_errors keep_log": (
        "core 1 1024 2 A 0 B 0 2 handle_errors keep_log",
        "2 A B 8/8 1 AA 1 core",
    ),
    "core 1 1000 2 A 0 B 0": 22,
    "core 1 1024 1 A 0": 22,
    "nolog 1 1024 2 A 0 B 0": 22,
    "core 1 x 2 A 0 B 0": 22,
    "core 1 1024 2 A 0": 22,
    "core 1 1024 2 A 0 B x": 22,
    "core 1 1024 2 A 0 B 0 1 bogus": 22,
    "core 1 1024 2 A 0 B 0 2 handle_errors": 22,
    "core 1 1024 2 A 0 /nosuch 0": 19,
    "": 22,
    "core 3 1024 nosync block_on_error 2 A 0 B 0": 22,
    "core 1 1024 2 A 0 B 0 extra": 22,
    "core 0 2 A 0 B 0": 22,
    "core 1 1024 2 A 99999999 B 0": 22,
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for index, name in enumerate("ABC"):
        path = found[name] = tmp_path / f"disk{index}"
        with path.open("wb") as file:
            file.truncate(DISK_BYTES)
    return found


@pytest.fixture
async def mapper() -> AsyncIterator[DeviceMapper]:
    run_on_the_spot()
    async with open_device_mapper("/nonexistent") as made:
        yield made


def on(files: dict[str, Path], words: str) -> str:
    return " ".join(str(files.get(word, word)) for word in words.split(" "))


async def copied(mapper: DeviceMapper, name: str = "m") -> str:
    """The status once all is copied."""
    while True:
        status = await mapper.status(name)
        done, _, total = next(word for word in status.split(" ")[4:] if "/" in word and word[0] != "/").partition("/")
        if done == total:
            return status
        await trio.testing.wait_all_tasks_blocked()


async def test_tables_are_answered_as_by_kernel_6_1(mapper: DeviceMapper, files: dict[str, Path]) -> None:
    for words, seen in SEEN.items():
        try:
            await mapper.create("m", f"0 {SECTORS} mirror {on(files, words)}".rstrip())
            status = await copied(mapper)
            mine: object = ((await mapper.table("m")).split(" ", 3)[3], status.split(" ", 3)[3])
            assert (await mapper.info("m")).event_nr == ("nosync" not in words), words
            await mapper.remove("m")
        except ThinfsError as error:
            mine = error.errno
        assert mine == (tuple(on(files, text) for text in seen) if isinstance(seen, tuple) else seen), words


async def test_what_was_there_and_what_is_written_meanwhile_is_on_every_leg(
    mapper: DeviceMapper, files: dict[str, Path]
) -> None:
    data = bytearray(b"".join(bytes([region + 1]) * REGION for region in range(8)))
    files["A"].write_bytes(bytes(data) + bytes(DISK_BYTES - len(data)))
    await mapper.create("m", f"0 {SECTORS} mirror {on(files, 'core 1 1024 3 A 0 B 512 C 0')}")
    device = await mapper.open("m")
    for turn in range(40):  # across regions that are copied, that are being copied, that are not yet
        offset = turn * 100_003 % (len(data) - 700_000)
        piece = bytes([100 + turn]) * (REGION + 5_000 if turn % 7 == 0 else 3_000)
        await device.write(offset, piece)
        data[offset : offset + len(piece)] = piece
        assert await device.read(offset, len(piece)) == piece
        await trio.lowlevel.checkpoint()
    await copied(mapper)
    await device.write(0, b"after")
    data[:5] = b"after"
    await device.flush()
    assert await device.read(0, len(data)) == data
    await device.aclose()
    for name, start in (("A", 0), ("B", 512 * 512), ("C", 0)):
        assert files[name].read_bytes()[start : start + len(data)] == data, name


async def test_a_suspend_stops_the_copying_and_a_resume_goes_on(mapper: DeviceMapper, files: dict[str, Path]) -> None:
    await mapper.create("m", f"0 {SECTORS} mirror {on(files, 'core 1 8 2 A 0 B 0')}")
    await mapper.suspend("m")
    before = await mapper.status("m")
    assert " 1024/1024 " not in before
    await trio.testing.wait_all_tasks_blocked()
    assert await mapper.status("m") == before
    await mapper.resume("m")
    assert " 1024/1024 " in await copied(mapper)


async def test_a_leg_that_fails_is_used_no_more_and_an_event_says_so(
    mapper: DeviceMapper, files: dict[str, Path]
) -> None:
    await mapper.create("bad", f"0 2048 linear {files['B']} 0\n2048 {SECTORS - 2048} error")
    files["A"].write_bytes(b"a" * DISK_BYTES)
    await mapper.create("m", f"0 {SECTORS} mirror {on(files, 'core 1 1024 2 A 0 /dev/mapper/bad 0 1 handle_errors')}")
    await mapper.wait("m", 0)
    assert (await mapper.status("m")).split(" ")[6:] == ["2/8", "1", "AD", "1", "core"]
    device = await mapper.open("m")
    await device.write(3 << 20, b"still here")
    assert await device.read(3 << 20, 10) == b"still here"
    await device.aclose()


async def test_a_first_leg_that_fails_leaves_the_other_only_where_all_is_copied(
    mapper: DeviceMapper, files: dict[str, Path]
) -> None:
    files["A"].write_bytes(b"a" * DISK_BYTES)
    await mapper.create("first", f"0 {SECTORS} linear {files['A']} 0")
    await mapper.create("m", f"0 {SECTORS} mirror {on(files, 'core 1 1024 2 /dev/mapper/first 0 B 0')}")
    await copied(mapper)
    await mapper.load("first", f"0 {SECTORS} error")
    await mapper.resume("first")
    device = await mapper.open("m")
    assert await device.read(5 << 18, 3) == b"aaa"
    assert (await mapper.status("m")).split(" ")[7:9] == ["1", "DA"]
    await device.write(0, b"new")
    assert await device.read(0, 3) == b"new"
    await mapper.load("m", f"0 {SECTORS} mirror {on(files, 'core 1 1024 2 /dev/mapper/first 0 B 0')}")
    await mapper.resume("m")
    with pytest.raises(IOFailed):
        await device.read(0, 3)
    await device.aclose()
