"""Reads and writes: buffered, direct, mapped, failing, waiting, many at once."""

import errno
import hashlib
import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tests.fuse.conftest import MIB, TIMEOUT, Server


class InThread(threading.Thread):
    """A client call that may block; `result` joins it."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.outcome: object = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._call()
        except OSError as error:
            self.outcome = error

    def result(self) -> object:
        self.join(TIMEOUT)
        assert not self.is_alive(), "still blocked"
        return self.outcome


def test_what_is_written_is_read_by_another_descriptor_at_once(server: Server) -> None:
    writer, reader = os.open(server.path(), os.O_RDWR), os.open(server.path(), os.O_RDONLY)
    try:
        for text in (b"first", b"other"):
            os.pwrite(writer, text, 5000)
            assert os.pread(reader, 5, 5000) == text
    finally:
        os.close(writer)
        os.close(reader)


def test_a_written_byte_has_reached_the_image_when_write_returns(server: Server) -> None:
    with open(server.path(), "r+b", buffering=0) as file:
        file.write(b"W")
        assert server("state")["first"] == "W"


def test_opening_again_shows_what_changed_behind_the_page_cache(server: Server) -> None:
    with open(server.path(), "rb") as file:
        assert file.read(1) == b"\0"
    server("poke", byte="P")
    with open(server.path(), "rb") as file:
        assert file.read(1) == b"P"


def test_writes_of_any_alignment_read_back(server: Server) -> None:
    data = os.urandom(3 * MIB + 17)
    fd = os.open(server.path(), os.O_RDWR)
    try:
        assert os.pwrite(fd, data, 511) == len(data)
        assert hashlib.sha256(os.pread(fd, len(data), 511)).digest() == hashlib.sha256(data).digest()
    finally:
        os.close(fd)


def test_direct_io_and_the_page_cache_agree(server: Server) -> None:
    direct, cached = os.open(server.path(), os.O_RDWR | os.O_DIRECT), os.open(server.path(), os.O_RDWR)
    with mmap.mmap(-1, MIB) as buffer:
        try:
            assert os.pread(cached, 1, 4096) == b"\0"
            buffer[:] = b"d" * MIB
            assert os.pwritev(direct, [buffer], 4096) == MIB
            assert os.pread(cached, MIB, 4096) == buffer[:]
            os.pwrite(cached, b"c" * 4096, 8192)
            assert os.preadv(direct, [buffer], 4096) == MIB
            assert buffer[4096:8193] == b"c" * 4096 + b"d"
        finally:
            os.close(direct)
            os.close(cached)


MAPPING = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
with mmap.mmap(fd, 1 << 20) as memory:
    assert memory[:4] == b"file", bytes(memory[:4])
    memory[:5] = b"Mmap!"
    {then}
"""


def run_mapping(server: Server, then: str) -> None:
    # In a process of its own: a page fault holds the interpreter's lock of whoever waits for the server.
    with open(server.path(), "r+b", buffering=0) as file:
        file.write(b"file")
    done = server.run(sys.executable, "-c", MAPPING.format(then=then), server.path())
    assert (done.returncode, done.stderr) == (0, "")


def test_a_shared_mapping_reads_and_writes_the_volume(server: Server) -> None:
    run_mapping(server, "memory.flush()")
    with open(server.path(), "rb") as file:
        assert file.read(5) == b"Mmap!"
    assert server("state")["first"] == "M"


def test_what_a_mapping_has_dirtied_is_written_at_the_last_close(server: Server) -> None:
    run_mapping(server, "pass")
    assert server("state")["first"] == "M"


def test_flush_dirty_writes_what_a_mapping_has_dirtied_while_it_stays_open(server: Server) -> None:
    with open(server.path(), "r+b", buffering=0) as file:
        file.write(b"file")
    script = MAPPING.format(then="print('dirty', flush=True); sys.stdin.read()")
    command = [*server.prefix, sys.executable, "-c", script, server.path()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        try:
            assert client.stdout.readline() == b"dirty\n"
            assert server("state")["first"] == "f"
            assert server("flush_dirty")["first"] == "M"
        finally:
            client.communicate(timeout=TIMEOUT)
    assert client.returncode == 0


def test_fsync_reaches_the_image_and_reports_its_error(server: Server) -> None:
    fd = os.open(server.path(), os.O_RDWR)
    try:
        os.fsync(fd)
        os.fdatasync(fd)
        assert server("state")["nr_flushes"] == 2
        server("set", broken=True)
        with pytest.raises(OSError) as failed:
            os.fsync(fd)
        assert failed.value.errno == errno.EIO
    finally:
        os.close(fd)


def test_a_read_past_the_end_is_short(server: Server) -> None:
    fd = os.open(server.path("odd"), os.O_RDONLY)
    try:
        assert len(os.pread(fd, 65536, 65536)) == 100352 - 65536
        assert os.pread(fd, 1, 100352) == b""
        assert os.pread(fd, 1, MIB) == b""
    finally:
        os.close(fd)


def test_a_write_across_the_end_is_cut_off_there(server: Server) -> None:
    with open(server.path("other"), "r+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), b"x" * 8192, MIB - 4096) == 4096
        assert os.fstat(file.fileno()).st_size == MIB
        assert os.pread(file.fileno(), 8192, MIB - 4096) == b"x" * 4096


def test_a_direct_write_across_the_end_is_eio(server: Server) -> None:
    # Not our choice: the kernel's FUSE makes EIO of a short direct write.
    fd = os.open(server.path("other"), os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 8192) as buffer:
        try:
            with pytest.raises(OSError) as refused:
                os.pwritev(fd, [buffer], MIB - 4096)
            assert refused.value.errno == errno.EIO
        finally:
            os.close(fd)


@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_a_write_past_the_end_is_enospc(server: Server, flags: int) -> None:
    fd = os.open(server.path("other"), os.O_RDWR | flags)
    with mmap.mmap(-1, 8192) as buffer:
        try:
            with pytest.raises(OSError) as refused:
                os.pwritev(fd, [buffer], MIB)
            assert refused.value.errno == errno.ENOSPC
            assert os.fstat(fd).st_size == MIB
        finally:
            os.close(fd)


def test_an_unknown_exception_is_answered_eio_and_the_server_lives_on(server: Server) -> None:
    server("set", "other", buggy=True)
    with open(server.path("other"), "rb") as broken, pytest.raises(OSError) as failed:
        broken.read(1)
    assert failed.value.errno == errno.EIO
    with open(server.path(), "rb") as file:
        assert file.read(1) == b"\0"


def test_sixteen_writers_at_once_lose_nothing(server: Server) -> None:
    def write(number: int) -> None:
        fd = os.open(server.path(), os.O_RDWR | (os.O_DIRECT if number % 2 else 0))
        with mmap.mmap(-1, 8192) as buffer:
            buffer[:] = bytes([number + 1]) * 8192
            for chunk in range(128):
                assert os.pwritev(fd, [buffer], (chunk * 16 + number) * 8192) == 8192
        os.close(fd)

    threads = [InThread(lambda number=number: write(number)) for number in range(16)]  # type: ignore[misc]
    for thread in threads:
        assert thread.result() is None
    expected = b"".join(bytes([number + 1]) * 8192 for number in range(16)) * 128
    with open(server.path(), "rb") as file:
        assert file.read() == expected


def test_a_writer_that_waits_for_space_blocks_neither_readers_nor_other_volumes(server: Server) -> None:
    with open(server.path(), "r+b", buffering=0) as file:
        file.write(b"mapped")
    server("fill")
    fd = os.open(server.path(), os.O_RDWR)
    try:
        waiting = InThread(lambda: os.pwrite(fd, b"late", MIB))
        server("wait_for_writers", count=1)
        with open(server.path(), "rb") as file:
            assert file.read(6) == b"mapped"
        with open(server.path("other"), "r+b", buffering=0) as other:
            assert other.write(b"x") == 1
        assert waiting.is_alive()
        server("make_room")
        assert waiting.result() == 4
        assert os.pread(fd, 4, MIB) == b"late"
    finally:
        os.close(fd)


def test_flush_dirty_does_not_wait_for_a_writer_that_waits_for_space(server: Server) -> None:
    server("fill")
    fd = os.open(server.path(), os.O_RDWR)
    try:
        waiting = InThread(lambda: os.pwrite(fd, b"late", MIB))
        server("wait_for_writers", count=1)
        assert server("flush_dirty")["nr_waiting"] == 1
        server("make_room")
        assert waiting.result() == 4
    finally:
        os.close(fd)


def test_more_waiting_writers_than_pyfuse3_has_workers_by_default_block_nobody_else(server: Server) -> None:
    names = [f"full-{number}" for number in range(150)]
    for name in names:
        server("add", name, size_bytes=65536)
        server("fill", name)
    descriptors = [os.open(server.path(name), os.O_RDWR) for name in names]
    try:
        waiting = [InThread(lambda fd=fd: os.pwrite(fd, b"late", 0)) for fd in descriptors]  # type: ignore[misc]
        for name in names:
            server("wait_for_writers", name, count=1)
        with open(server.path(), "r+b", buffering=0) as file:
            assert file.write(b"x") == 1
        for name in names:
            server("make_room", name)
        assert [thread.result() for thread in waiting] == [4] * len(names)
    finally:
        for fd in descriptors:
            os.close(fd)


def test_mkfs_and_its_check_work_on_the_file(server: Server) -> None:
    made = server.run("mkfs.ext4", "-q", "-F", server.path())
    assert (made.returncode, made.stderr) == (0, "")
    checked = server.run("e2fsck", "-f", "-n", server.path())
    assert checked.returncode == 0, checked.stdout + checked.stderr
