"""An exception that is no ThinfsError, anywhere in a pass or a message: a failed metadata operation, and nothing hangs.

Bugs are planted by patching methods of the engine, which a compiled one would not notice: it must be interpreted.
"""

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.system.images import PoolFiles, make_pool
from tests.thin_tools import accepted
from thinfs.errors import IOFailed, NotSupported
from thinfs.pool import pool as pool_module
from thinfs.pool.discards import Discards
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.new_mappings import NewMappings
from thinfs.pool.space import Space
from thinfs.pool.thin_device import ThinDevice
from thinfs.userspace.blocking import run_on_the_spot
from thinfs.userspace.devices import DeviceMapper, open_device_mapper

BLOCK = 65536


class Bug(Exception):
    """What no code of ours raises."""


def a_bug(*_: Any, **__: Any) -> Any:
    raise Bug("planted")


@pytest.fixture
def files(tmp_path: Path) -> PoolFiles:
    assert pool_module.__file__.endswith(".py"), "planted bugs need the interpreted engine"
    return make_pool(tmp_path, data_bytes=1 << 20, metadata_bytes=1 << 20)


@pytest.fixture
async def mapper(files: PoolFiles, autojump_clock: MockClock) -> AsyncIterator[DeviceMapper]:
    """A pool `p` and a thin `t` of it with block 0 written and committed; the metadata is sound in the end."""
    run_on_the_spot()
    async with open_device_mapper("/nonexistent") as made:
        await made.create("p", files.table())
        await made.message("p", "create_thin 0")
        await made.create("t", "0 2048 thin /dev/mapper/p 0")
        device = await made.open("t")
        await device.write(0, b"kept")
        await device.flush()
        await device.aclose()
        yield made
    accepted(files.metadata)


async def _mode_and_check(mapper: DeviceMapper) -> tuple[str, str]:
    words = (await mapper.status("p")).split()
    return words[7], words[10]


async def _used_blocks(mapper: DeviceMapper) -> str:
    return (await mapper.status("p")).split()[5]


async def _is_read_only_and_lives(mapper: DeviceMapper) -> None:
    assert await _mode_and_check(mapper) == ("ro", "needs_check")
    device = await mapper.open("t")
    assert await device.read(0, 4) == b"kept"
    for block in range(3):  # no cell stays held: each is answered
        with trio.fail_after(60):
            if block:
                with pytest.raises(IOFailed):
                    await device.write(block * BLOCK, b"again")
            else:
                await device.write(0, b"kept")
    await device.aclose()


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (ThinDevice, "insert_block"),
        (PoolMetadata, "alloc_data_block"),
        (NewMappings, "provision"),
        (NewMappings, "insert"),
        (Space, "alloc_data_block"),
        (PoolMetadata, "_write_changed_details"),
    ],
)
async def test_a_bug_on_the_way_of_a_first_write_fails_it_and_aborts(
    mapper: DeviceMapper, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, owner: type, method: str
) -> None:
    device = await mapper.open("t")
    used = await _used_blocks(mapper)
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(owner, method, a_bug)
        with pytest.raises(IOFailed, match="internal error"):
            await device.write(BLOCK, b"new")
            await device.flush()
    assert any(record.exc_info is not None and record.exc_info[0] is Bug for record in caplog.records)
    await _is_read_only_and_lives(mapper)
    assert await _used_blocks(mapper) == used
    await device.aclose()


async def test_a_bug_fails_every_bio_that_was_taken_on(mapper: DeviceMapper, monkeypatch: pytest.MonkeyPatch) -> None:
    device = await mapper.open("t")
    errors: list[Exception] = []

    async def write(block: int, length: int) -> None:
        try:
            await device.write(block * BLOCK, bytes(length))
        except IOFailed as error:
            errors.append(error)

    with monkeypatch.context() as patch:
        patch.setattr(ThinDevice, "insert_block", a_bug)
        async with trio.open_nursery() as nursery:
            for block in (1, 1, 2, 3):
                nursery.start_soon(write, block, 512)
            nursery.start_soon(write, 4, 3 * BLOCK)
    assert len(errors) == 5
    await _is_read_only_and_lives(mapper)
    await device.aclose()


@pytest.mark.parametrize("method", ["remove_range", "find_mapped_range"])
async def test_a_bug_in_a_discard_fails_it_and_aborts(
    mapper: DeviceMapper, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    device = await mapper.open("t")
    with monkeypatch.context() as patch:
        patch.setattr(ThinDevice, method, a_bug)
        with pytest.raises(IOFailed):
            await device.discard(0, BLOCK)
    await _is_read_only_and_lives(mapper)
    await device.aclose()


async def test_a_bug_in_the_passing_down_of_a_discard_leaves_nothing_held(
    mapper: DeviceMapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = await mapper.open("t")
    with monkeypatch.context() as patch:
        patch.setattr(Discards, "drop_last_count", a_bug)
        with pytest.raises(IOFailed):
            await device.discard(0, BLOCK)
    assert await _mode_and_check(mapper) == ("ro", "needs_check")
    with trio.fail_after(60):
        await device.read(0, 4)
    await device.aclose()


@pytest.mark.parametrize(
    ("message", "owner", "method"),
    [
        ("create_thin 5", PoolMetadata, "create_thin"),
        ("create_snap 5 0", PoolMetadata, "create_snap"),
        ("delete 0", PoolMetadata, "delete_thin"),
        ("reserve_metadata_snap", PoolMetadata, "reserve_metadata_snap"),
    ],
)
async def test_a_bug_in_a_message_is_eio_and_aborts(
    mapper: DeviceMapper, monkeypatch: pytest.MonkeyPatch, message: str, owner: type, method: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, a_bug)
        with pytest.raises(IOFailed, match=f"{message.split()[0]}: internal error"):
            await mapper.message("p", message)
    with pytest.raises(NotSupported):
        await mapper.message("p", "create_thin 6")
    await _is_read_only_and_lives(mapper)


async def test_a_bug_in_a_look_up_fails_the_request_alone(
    mapper: DeviceMapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has changed then: there is nothing to abort."""
    device = await mapper.open("t")
    honest: Callable[..., Any] = ThinDevice.find_block
    with monkeypatch.context() as patch:
        patch.setattr(ThinDevice, "find_block", a_bug)
        with pytest.raises(IOFailed):
            await device.write(0, b"x" * (2 * BLOCK))
    assert ThinDevice.find_block is honest
    assert (await _mode_and_check(mapper))[0] == "rw"
    await device.write(0, b"kept")
    await device.aclose()
