"""thinfs as a library: what README shows, and what a program may rely on."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

import thinfs
from tests.thin_tools import accepted
from thinfs.errors import BackingMissing, BadMetadata, Busy, Exists, InvalidArgument, IOFailed, NoSpace, NoSuchThin

BLOCK = 65536
MIB = 1 << 20


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    metadata, data = tmp_path / "meta.img", tmp_path / "data.img"
    for path, size in ((metadata, 4 * MIB), (data, 2 * MIB)):
        with path.open("wb") as file:
            file.truncate(size)
    return metadata, data


def test_the_five_lines_of_readme(files: tuple[Path, Path]) -> None:
    with thinfs.open_pool(*files) as pool:
        pool.create_thin(0)
        with pool.volume(0, 1 << 30) as volume:
            volume.write(5000, b"hello")
            pool.create_snap(1, 0)
            volume.write(5000, b"HELLO")
            assert pool.volume(1, 1 << 30).read(5000, 5) == b"hello"
    accepted(files[0])


def test_what_was_written_is_there_when_it_is_opened_again(files: tuple[Path, Path]) -> None:
    with thinfs.open_pool(*files) as pool:
        pool.create_thin(7)
        volume = pool.volume(7, 8 * MIB)
        volume.write(BLOCK - 3, b"across the edge")
    with thinfs.open_pool(*files) as pool:
        assert {dev_id: details.mapped_blocks for dev_id, details in pool.thins().items()} == {7: 2}
        volume = pool.volume(7, 8 * MIB)
        assert volume.read(BLOCK - 3, 15) == b"across the edge"
        assert volume.mapped_bytes == 2 * BLOCK
        assert list(volume.runs()) == [(0, 2 * BLOCK)]
        volume.discard(0, BLOCK)
        assert list(volume.runs()) == [(BLOCK, 2 * BLOCK)]
    accepted(files[0])


def test_a_flush_makes_it_durable_without_a_close(files: tuple[Path, Path], tmp_path: Path) -> None:
    program = f"""
import os, thinfs
pool = thinfs.open_pool({str(files[0])!r}, {str(files[1])!r})
pool.create_thin(0)
volume = pool.volume(0, 1 << 20)
volume.write(0, b"kept")
volume.flush()
volume.write(200000, b"not flushed")
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    accepted(files[0])
    with thinfs.open_pool(*files) as pool:
        assert pool.volume(0, 1 << 20).read(0, 4) == b"kept"


def test_refusals_say_what_is_wrong(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(BackingMissing, match="nowhere"):
        thinfs.open_pool(tmp_path / "nowhere", files[1])
    with pytest.raises(InvalidArgument, match="block_bytes 1000"):
        thinfs.open_pool(*files, block_bytes=1000)
    with thinfs.open_pool(*files) as pool:
        pool.create_thin(0)
        with pytest.raises(Exists):
            pool.create_thin(0)
        with pytest.raises(NoSuchThin):
            pool.create_snap(1, 5)
        with pytest.raises(NoSuchThin):
            pool.volume(9, 512)
        with pytest.raises(InvalidArgument, match="size_bytes 100"):
            pool.volume(0, 100)
        volume = pool.volume(0, 1024)
        with pytest.raises(Busy):
            pool.delete(0)
        for offset, length in ((-1, 1), (1000, 25), (1025, 0)):
            with pytest.raises(InvalidArgument, match="the size is 1024"):
                volume.read(offset, length)
        volume.close()
        with pytest.raises(InvalidArgument, match="closed"):
            volume.read(0, 1)
        pool.delete(0)
    with pytest.raises(InvalidArgument, match="the pool is closed"):
        pool.create_thin(1)
    with pytest.raises(InvalidArgument, match="changing the data block size"):
        thinfs.open_pool(*files, block_bytes=2 * BLOCK)
    files[0].write_bytes(b"x" * 4 * MIB)
    with pytest.raises(BadMetadata):
        thinfs.open_pool(*files)


def test_a_refused_opening_leaves_nothing_locked(files: tuple[Path, Path]) -> None:
    with thinfs.open_pool(*files):
        pass
    with pytest.raises(InvalidArgument):
        thinfs.open_pool(*files, block_bytes=2 * BLOCK)
    with thinfs.open_pool(*files) as pool:
        with pytest.raises(Busy):
            thinfs.open_pool(*files)
        assert pool.status() is not None


def test_a_full_pool_is_enospc_and_goes_on_after_a_discard(files: tuple[Path, Path]) -> None:
    with thinfs.open_pool(*files) as pool:
        pool.create_thin(0)
        volume = pool.volume(0, 16 * MIB)
        for block in range(32):
            volume.write(block * BLOCK, b"x")
        with pytest.raises(NoSpace):
            volume.write(40 * BLOCK, b"x")
        assert volume.read(31 * BLOCK, 1) == b"x"
        volume.discard(0, BLOCK)
        pool.commit()
        volume.write(40 * BLOCK, b"y")
        status = pool.status()
        assert status is not None
        assert (status.used_data_blocks, status.nr_data_blocks) == (32, 32)
    accepted(files[0])


def test_a_read_only_pool_changes_nothing(files: tuple[Path, Path]) -> None:
    with thinfs.open_pool(*files) as pool:
        pool.create_thin(0)
        pool.volume(0, MIB).write(0, b"kept")
    before = files[0].read_bytes(), files[1].read_bytes()
    with thinfs.open_pool(*files, read_only=True) as pool:
        volume = pool.volume(0, MIB)
        assert volume.read(0, 4) == b"kept"
        with pytest.raises(IOFailed):
            volume.write(BLOCK, b"x")
    assert (files[0].read_bytes(), files[1].read_bytes()) == before


def test_a_volume_is_a_file(files: tuple[Path, Path]) -> None:
    with thinfs.open_pool(*files) as pool:
        pool.create_thin(0)
        volume = pool.volume(0, MIB)
        with volume.open("r+b") as raw:
            assert raw.seek(-5, io.SEEK_END) == MIB - 5
            assert raw.write(b"the end, and past it") == 5
            with pytest.raises(OSError, match="No space left"):
                raw.write(b"x")
            assert raw.read() == b""
            raw.seek(0)
            raw.write(b"start")
        with io.BufferedReader(volume.open()) as file:
            assert file.read(5) == b"start"
            file.seek(-5, io.SEEK_END)
            assert file.read() == b"the e"
        with volume.open() as raw, pytest.raises(io.UnsupportedOperation):
            raw.write(b"x")
        with pytest.raises(InvalidArgument):
            volume.open("wb")


async def test_the_same_in_trio(files: tuple[Path, Path]) -> None:
    async with thinfs.open_pool_trio(str(files[0]), str(files[1])) as pool:
        await pool.create_thin(0)
        volume = await pool.volume(0, MIB)
        await volume.write(0, b"hello")
        await volume.flush()
        await pool.create_snap(1, 0)
        snap = await pool.volume(1, MIB)
        await volume.write(0, b"HELLO")
        assert (await volume.read(0, 5), await snap.read(0, 5)) == (b"HELLO", b"hello")
        await snap.aclose()
        await pool.delete(1)
        assert list(await pool.thins()) == [0]
        status = await pool.status()
        assert status is not None
        assert status.used_data_blocks == 1
    accepted(files[0])


def test_the_package_alone_imports_nothing(tmp_path: Path) -> None:
    """The drop-in starts hundreds of times in a row."""
    program = "import sys, thinfs; print(*(name for name in sys.modules if name.startswith(('thinfs', 'trio'))))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["thinfs"]
