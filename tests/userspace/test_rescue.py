"""thin-rescue and `thinfs rescue`: what a damaged, half lost or emptied pool can still show, without a byte written."""

import os
import re
import struct
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests.system.images import PoolFiles, make_pool
from thinfs.blockdev import FileDevice
from thinfs.cli import rescue
from thinfs.errors import InvalidArgument, IOFailed
from thinfs.salvage import Salvage
from thinfs.userspace.blocking import run_on_the_spot
from thinfs.userspace.devices import DeviceMapper, open_device_mapper

MIB = 1 << 20
BLOCK = 65536
NR_BLOCKS = 700  # more than a leaf holds
SECTORS = 256 * MIB // 512
VOLUME = NR_BLOCKS * 128


def contents(dev_id: int, block: int) -> bytes:
    return struct.pack("<2Q", dev_id + 1, block + 1) * 32


async def _fill(mapper: DeviceMapper, dev_id: int) -> None:
    await mapper.message("p", f"create_thin {dev_id}")
    await mapper.create(f"t{dev_id}", f"0 {VOLUME} thin /dev/mapper/p {dev_id}")
    device = await mapper.open(f"t{dev_id}")
    for block in range(0, NR_BLOCKS, 1 + dev_id):
        await device.write(block * BLOCK, contents(dev_id, block))
    await device.flush()
    await device.aclose()
    await mapper.remove(f"t{dev_id}")


@pytest.fixture
async def files(tmp_path: Path) -> PoolFiles:
    """A pool that is active nowhere: thin 0 of 700 blocks, thin 1 of 350, which has been deleted."""
    run_on_the_spot()
    made = make_pool(tmp_path, data_bytes=256 * MIB, metadata_bytes=4 * MIB)
    async with open_device_mapper("/nonexistent") as mapper:
        await mapper.create("p", f"0 {SECTORS} thin-pool {made.metadata} {made.data} 128 0 1 skip_block_zeroing")
        await _fill(mapper, 0)
        await _fill(mapper, 1)
        await mapper.message("p", "delete 1")
    return made


@pytest.fixture
async def mapper(files: PoolFiles) -> AsyncIterator[DeviceMapper]:
    """At the end neither file has changed since the test damaged it."""
    async with open_device_mapper("/nonexistent") as made:
        yield made


def digests(files: PoolFiles) -> list[str]:
    return [sha256(path.read_bytes()).hexdigest() for path in (files.metadata, files.data)]


async def _read(mapper: DeviceMapper, table: str, dev_id: int) -> tuple[int, int]:
    """(blocks that show what was written, blocks that are EIO) of all that were written; no other answer."""
    await mapper.create("r", table, read_only=True)
    device = await mapper.open("r")
    shown = lost = 0
    for block in range(0, NR_BLOCKS, 1 + dev_id):
        try:
            assert await device.read(block * BLOCK, 512) == contents(dev_id, block)
            shown += 1
        except IOFailed:
            lost += 1
    with pytest.raises(IOFailed):
        await device.write(0, bytes(512))
    await device.aclose()
    await mapper.remove("r")
    return shown, lost


def table(files: PoolFiles, *words: object) -> str:
    return f"0 {VOLUME} thin-rescue {files.metadata} {files.data} {' '.join(map(str, words))}"


def a_leaf_of(files: PoolFiles, dev_id: int) -> int:
    device = FileDevice(str(files.metadata), read_only=True)
    salvage = Salvage(device)
    root = salvage.node(salvage.root_of(dev_id))
    device.close()
    assert not root.is_leaf
    return root.values[1]


def put(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


async def test_a_sound_pool_is_shown_whole(mapper: DeviceMapper, files: PoolFiles) -> None:
    before = digests(files)
    assert await _read(mapper, table(files, 0), 0) == (NR_BLOCKS, 0)
    assert digests(files) == before


async def test_beyond_a_damaged_leaf_all_is_shown(
    mapper: DeviceMapper, files: PoolFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    leaf = a_leaf_of(files, 0)
    put(files.metadata, leaf * 4096 + 100, b"damage")
    before = digests(files)
    shown, lost = await _read(mapper, table(files, 0), 0)
    assert shown + lost == NR_BLOCKS
    assert 100 < lost < 300
    assert rescue.main([str(files.metadata), "--no-older"]) == 1
    printed = capsys.readouterr().out
    found = re.search(r"  lost: blocks (\d+) to (\d+): metadata block (\d+): ", printed)
    assert found is not None
    assert (int(found[2]) - int(found[1]) + 1, int(found[3])) == (lost, leaf)
    assert digests(files) == before


async def test_a_deleted_thin_is_found_and_shown(
    mapper: DeviceMapper, files: PoolFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    before = digests(files)
    assert rescue.main([str(files.metadata), str(files.data)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"thin 0: {NR_BLOCKS} blocks\n")
    offered = re.findall(
        r'older: thin 1, root \d+: 350 blocks\n  dmsetup create --readonly NAME --table "(.*)"', printed
    )
    assert offered
    assert await _read(mapper, offered[0], 1) == (350, 0)
    assert digests(files) == before


async def test_without_a_superblock_the_roots_still_lead_there(
    mapper: DeviceMapper, files: PoolFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    put(files.metadata, 0, bytes(4096))
    with pytest.raises(InvalidArgument, match="`thinfs rescue` finds other roots"):
        await mapper.create("r", table(files, 0), read_only=True)
    assert rescue.main([str(files.metadata), str(files.data), "--block-sectors", "128"]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("no superblock: ")
    root = re.search(rf"older: thin 0, root (\d+): {NR_BLOCKS} blocks\n", printed)
    assert root is not None
    assert await _read(mapper, table(files, 0, root[1], 128), 0) == (NR_BLOCKS, 0)


async def test_a_pool_of_which_half_the_data_is_gone_shows_the_other_half(
    mapper: DeviceMapper, files: PoolFiles
) -> None:
    os.truncate(files.data, 350 * BLOCK)
    shown, lost = await _read(mapper, table(files, 0), 0)
    assert (shown, lost) == (350, 350)


async def test_metadata_that_end_too_early_show_what_they_lead_to(
    mapper: DeviceMapper, files: PoolFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate(files.metadata, a_leaf_of(files, 0) * 4096)  # with the leaf, today's root is gone
    with pytest.raises(InvalidArgument, match=r"thin-rescue: metadata block \d+: of \d+; `thinfs rescue` finds"):
        await mapper.create("r", table(files, 0), read_only=True)
    assert rescue.main([str(files.metadata), str(files.data)]) in (0, 1)
    for offered in re.findall(r'--table "(.*)"', capsys.readouterr().out):
        dev_id = int(offered.split()[5])
        shown, lost = await _read(mapper, re.sub(r"^0 \d+", f"0 {VOLUME}", offered), dev_id)
        assert shown + lost == len(range(0, NR_BLOCKS, 1 + dev_id))


@pytest.mark.parametrize(
    ("words", "read_only", "why"),
    [
        ("0", False, "must be read-only"),
        ("", True, "Invalid argument count: 2"),
        ("0 1 128 x", True, "Invalid argument count: 6"),
        ("x", True, "not a number: x"),
        ("7", True, "thin 7 does not exist"),
        ("0 99999999 128", True, "metadata block 99999999"),
        ("0 0 128", True, "metadata block 0"),
        ("0 7 0", True, "thin-rescue: "),
    ],
)
async def test_a_table_that_cannot_be_is_refused(
    mapper: DeviceMapper, files: PoolFiles, words: str, read_only: bool, why: str
) -> None:
    with pytest.raises(InvalidArgument, match=why):
        await mapper.create("r", table(files, words), read_only=read_only)
    assert await mapper.list() == []


async def test_a_kernel_s_list_of_targets_has_it_not(mapper: DeviceMapper) -> None:
    assert "thin-rescue" not in [target.name for target in await mapper.targets()]


async def test_any_node_may_be_garbage(mapper: DeviceMapper, files: PoolFiles) -> None:
    sound = files.metadata.read_bytes()
    for number in range(1, 40):
        for garbage in (bytes(4096), b"\xff" * 4096, sound[4096 * (number + 1) : 4096 * (number + 2)]):
            put(files.metadata, number * 4096, garbage)
            assert rescue.main([str(files.metadata)]) in (0, 1)
            put(files.metadata, number * 4096, sound[number * 4096 : (number + 1) * 4096])
