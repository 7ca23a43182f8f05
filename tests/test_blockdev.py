"""Backing files: what is past their end is neither there nor written; a file that has grown is seen."""

import os
from pathlib import Path

import pytest

from thinfs.blockdev import FileDevice
from thinfs.errors import IOFailed

SIZE = 8192


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, SIZE)
    return path


@pytest.mark.parametrize("offset", [SIZE, SIZE - 512, 1 << 40, 1 << 62, 1 << 70])
def test_nothing_is_written_past_the_end(path: Path, offset: int) -> None:
    device = FileDevice(str(path))
    with pytest.raises(IOFailed, match=f"write at byte {offset}: it ends at byte {SIZE}"):
        device.write(offset, b"x" * 1024)
    device.close()
    assert path.stat().st_size == SIZE


@pytest.mark.parametrize("offset", [SIZE, SIZE - 512, 1 << 40, 1 << 70])
def test_nothing_is_read_past_the_end(path: Path, offset: int) -> None:
    device = FileDevice(str(path))
    with pytest.raises(IOFailed, match="it ends before"):
        device.read(offset, 1024)
    device.close()


def test_what_the_file_has_grown_by_can_be_written(path: Path) -> None:
    device = FileDevice(str(path))
    device.write(SIZE - 512, b"x" * 512)
    os.truncate(path, 2 * SIZE)
    device.write(SIZE, b"y" * 1024)
    assert device.read(SIZE - 1, 2) == b"xy"
    device.close()
