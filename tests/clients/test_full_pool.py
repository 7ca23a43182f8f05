"""A pool without free blocks, seen by ordinary programs: who waits, who is refused, what wakes the waiting."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clients.conftest import MIB, SECONDS, Volumes, need_block_devices
from tests.system.images import PoolFiles, make_pool
from tests.thin_tools import accepted

SIZE = 64 * MIB
BLOCK = 65536


@pytest.fixture
def small(volumes: Volumes) -> Volumes:
    """The pool has 8 MiB of data; volume "t" has all of them but one block, "other" that one."""
    volumes.dmsetup("remove", volumes.name("pool"))
    make_pool(volumes.directory, data_bytes=8 * MIB, metadata_bytes=16 * MIB)
    volumes.create_pool()
    other = volumes.create_thin("other", SIZE)
    write(other, 0, b"o" * BLOCK)
    write(volumes.create_thin("t", SIZE), 0, b"t" * (8 * MIB - BLOCK))
    return volumes


def write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        assert file.write(data) == len(data)
        os.fsync(file.fileno())


def reload_pool(volumes: Volumes, files: PoolFiles, features: str) -> None:
    volumes.dmsetup("reload", volumes.name("pool"), "--table", files.table(features=features))
    volumes.dmsetup("resume", volumes.name("pool"))


@contextmanager
def writer(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A program that writes a block where there is none yet. It has begun when the `with` is entered."""
    command = ["dd", "if=/dev/zero", f"of={path}", "bs=64k", "count=1", "seek=500", "conv=notrunc,fsync"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "LC_ALL": "C"})
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=SECONDS)


def wait_for_mode(volumes: Volumes, mode: str) -> None:
    """`dmsetup wait` returns at the event of the pool that changes its mode."""
    if mode not in volumes.dmsetup("status", volumes.name("pool")):
        volumes.dmsetup("wait", volumes.name("pool"), event_nr(volumes))
    assert mode in volumes.dmsetup("status", volumes.name("pool"))


def event_nr(volumes: Volumes) -> str:
    return volumes.dmsetup("info", "-c", "--noheadings", "-o", "events", volumes.name("pool")).strip()


@pytest.mark.parametrize("kind", ["file", "block device"])
def test_a_writer_waits_for_space_others_go_on_and_a_larger_pool_wakes_it(small: Volumes, kind: str) -> None:
    if kind == "block device":
        need_block_devices()
    before = event_nr(small)
    with writer(small.file("t") if kind == "file" else small.node("t")) as waiting:
        small.dmsetup("wait", small.name("pool"), before)
        assert "out_of_data_space" in small.dmsetup("status", small.name("pool"))
        assert waiting.poll() is None
        write(small.file("other"), 0, b"x" * BLOCK)  # mapped already
        assert small.file("t").read_bytes()[:BLOCK] == b"t" * BLOCK
        assert small.file("other").read_bytes()[:BLOCK] == b"x" * BLOCK
        os.truncate(small.pool_files.data, 16 * MIB)
        reload_pool(small, small.pool_files, "1 skip_block_zeroing")
        _, errors = waiting.communicate(timeout=SECONDS)
        assert waiting.returncode == 0, errors
    assert " rw " in small.dmsetup("status", small.name("pool"))
    assert small.used_data_blocks() == 8 * MIB // BLOCK + 1


def test_a_waiting_writer_ends_with_an_error_when_the_pool_shall_not_queue(small: Volumes) -> None:
    before = event_nr(small)
    with writer(small.file("t")) as waiting:
        small.dmsetup("wait", small.name("pool"), before)
        assert waiting.poll() is None
        reload_pool(small, small.pool_files, "2 skip_block_zeroing error_if_no_space")
        _, errors = waiting.communicate(timeout=SECONDS)
        assert waiting.returncode == 1
        assert "No space left on device" in errors


def test_with_error_if_no_space_a_write_says_so_and_mapped_blocks_go_on(small: Volumes) -> None:
    reload_pool(small, small.pool_files, "2 skip_block_zeroing error_if_no_space")
    with pytest.raises(OSError) as refused:
        write(small.file("t"), 40 * MIB, b"x" * BLOCK)
    assert refused.value.errno == errno.ENOSPC
    write(small.file("t"), 0, b"y" * BLOCK)
    assert small.file("t").read_bytes()[: 2 * BLOCK] == b"y" * BLOCK + b"t" * BLOCK


def test_a_discard_in_a_full_pool_makes_room(small: Volumes) -> None:
    with writer(small.file("t")) as waiting:
        wait_for_mode(small, "out_of_data_space")
        subprocess.run(["fallocate", "-p", "-o", "0", "-l", str(BLOCK), small.file("other")], check=True, timeout=60)
        _, errors = waiting.communicate(timeout=SECONDS)
        assert waiting.returncode == 0, errors


def test_the_server_ends_while_a_writer_waits(small: Volumes) -> None:
    before = event_nr(small)
    with writer(small.file("t")) as waiting:
        small.dmsetup("wait", small.name("pool"), before)
        small.server.stop()
        waiting.communicate(timeout=SECONDS)
        assert waiting.returncode == 1
    accepted(small.pool_files.metadata)
