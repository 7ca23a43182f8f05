"""What pyfuse3 alone does not offer: SEEK_DATA, SEEK_HOLE, fallocate, and the loop driver's discard with them."""

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.conftest import MIB, Server
from thinfs.libc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE, fallocate

BLOCK = 65536
PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


@pytest.fixture
def fd(server: Server) -> Iterator[int]:
    """`vol` with the blocks 1, 2 and 4 written."""
    fd = os.open(server.path(), os.O_RDWR)
    try:
        os.pwrite(fd, b"d" * 2 * BLOCK, BLOCK)
        os.pwrite(fd, b"d" * BLOCK, 4 * BLOCK)
        yield fd
    finally:
        os.close(fd)


def test_seek_data_and_seek_hole_follow_the_mapping(fd: int) -> None:
    assert os.lseek(fd, 0, os.SEEK_DATA) == BLOCK
    assert os.lseek(fd, BLOCK + 5, os.SEEK_DATA) == BLOCK + 5
    assert os.lseek(fd, BLOCK, os.SEEK_HOLE) == 3 * BLOCK
    assert os.lseek(fd, 7, os.SEEK_HOLE) == 7
    assert os.lseek(fd, 3 * BLOCK, os.SEEK_DATA) == 4 * BLOCK


def test_seek_hole_in_the_last_data_is_the_end(server: Server) -> None:
    with open(server.path("odd"), "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"x", 100000)
        assert file.seek(70000, os.SEEK_HOLE) == 100352


@pytest.mark.parametrize(
    ("offset", "whence"), [(5 * BLOCK, os.SEEK_DATA), (16 * MIB, os.SEEK_DATA), (16 * MIB, os.SEEK_HOLE)]
)
def test_seeking_where_there_is_nothing_is_enxio(fd: int, offset: int, whence: int) -> None:
    with pytest.raises(OSError) as refused:
        os.lseek(fd, offset, whence)
    assert refused.value.errno == errno.ENXIO


def test_the_other_seeks_still_work(fd: int) -> None:
    assert os.lseek(fd, -1, os.SEEK_END) == 16 * MIB - 1
    assert os.lseek(fd, 1, os.SEEK_CUR) == 16 * MIB


def test_cp_copies_the_data_alone(server: Server, fd: int, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert server.run("cp", "--sparse=auto", server.path(), str(copy)).returncode == 0
    assert copy.stat().st_size == 16 * MIB
    assert copy.stat().st_blocks <= 3 * BLOCK // 512 + 64
    assert copy.read_bytes() == os.pread(fd, 16 * MIB, 0)


def test_punching_whole_blocks_unmaps_them(server: Server, fd: int) -> None:
    fallocate(fd, PUNCH, BLOCK, 4 * BLOCK)
    assert server("state")["mapped"] == []
    assert os.fstat(fd).st_blocks == 0
    assert os.pread(fd, 4 * BLOCK, BLOCK) == bytes(4 * BLOCK)


def test_punching_zeroes_the_partial_blocks_at_its_edges(server: Server, fd: int) -> None:
    fallocate(fd, PUNCH, BLOCK + 100, 3 * BLOCK)  # to byte 100 of block 4
    assert server("state")["mapped"] == [1, 4]
    assert os.pread(fd, 101, BLOCK) == b"d" * 100 + b"\0"
    assert os.pread(fd, 101, 4 * BLOCK) == bytes(100) + b"d"


def test_punching_inside_one_block_zeroes_and_keeps_it(server: Server, fd: int) -> None:
    fallocate(fd, PUNCH, BLOCK + 512, 512)
    assert server("state")["mapped"] == [1, 2, 4]
    assert os.pread(fd, 1026, BLOCK + 511) == b"d" + bytes(512) + b"d" * 513


def test_punching_a_hole_maps_nothing(server: Server, fd: int) -> None:
    fallocate(fd, PUNCH, 6 * BLOCK + 512, 3 * BLOCK)
    assert server("state")["mapped"] == [1, 2, 4]


def test_punching_where_an_origin_shows_through_reads_as_zeros(server: Server, fd: int) -> None:
    server("set", origin=[1, 2])
    fallocate(fd, PUNCH, BLOCK, 2 * BLOCK)
    assert os.pread(fd, 2 * BLOCK, BLOCK) == bytes(2 * BLOCK)


def test_punching_past_the_end_is_cut_off_there(server: Server) -> None:
    with open(server.path("odd"), "r+b", buffering=0) as file:
        file.write(b"d" * 100352)
        fallocate(file.fileno(), PUNCH, BLOCK, MIB)
        fallocate(file.fileno(), PUNCH, MIB, MIB)
        assert os.fstat(file.fileno()).st_size == 100352
        assert os.pread(file.fileno(), MIB, BLOCK - 1) == b"d" + bytes(100352 - BLOCK)


def test_a_pool_that_ignores_discards_refuses_to_punch(server: Server, fd: int) -> None:
    server("set", no_discard=True)
    with pytest.raises(OSError) as refused:
        fallocate(fd, PUNCH, BLOCK + 1, BLOCK)
    assert refused.value.errno == errno.EOPNOTSUPP
    assert os.pread(fd, BLOCK, BLOCK) == b"d" * BLOCK


@pytest.mark.parametrize("mode", [FALLOC_FL_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE])
def test_a_zeroed_range_reads_as_zeros_and_stays_mapped(server: Server, fd: int, mode: int) -> None:
    fallocate(fd, mode, BLOCK + 1, BLOCK)
    assert os.pread(fd, BLOCK + 2, BLOCK) == b"d" + bytes(BLOCK) + b"d"
    assert server("state")["mapped"] == [1, 2, 4]


@pytest.mark.parametrize("mode", [0, FALLOC_FL_KEEP_SIZE])
def test_preallocation_maps_and_changes_nothing(server: Server, fd: int, mode: int) -> None:
    fallocate(fd, mode, 2 * BLOCK, 3 * BLOCK)
    assert server("state")["mapped"] == [1, 2, 3, 4]
    assert os.pread(fd, 3 * BLOCK, 2 * BLOCK) == b"d" * BLOCK + bytes(BLOCK) + b"d" * BLOCK


@pytest.mark.parametrize("mode", [0, FALLOC_FL_ZERO_RANGE])
def test_a_range_that_needs_a_larger_file_is_efbig(fd: int, mode: int) -> None:
    with pytest.raises(OSError) as refused:
        fallocate(fd, mode, 16 * MIB - 512, 1024)
    assert refused.value.errno == errno.EFBIG


@pytest.mark.parametrize("mode", [0x08, 0x20, 0x40], ids=["collapse", "insert", "unshare"])
def test_other_modes_are_not_supported(fd: int, mode: int) -> None:
    with pytest.raises(OSError) as refused:
        fallocate(fd, mode, 0, BLOCK)
    assert refused.value.errno == errno.EOPNOTSUPP


def test_a_punch_that_waits_for_space_blocks_no_reader(server: Server, fd: int) -> None:
    server("set", origin=[8])
    server("fill")
    punch = subprocess.Popen(["fallocate", "-p", "-o", str(8 * BLOCK), "-l", "512", server.path()])
    try:
        server("wait_for_writers", count=1)
        assert os.pread(fd, 1, BLOCK) == b"d"
        server("make_room")
        assert punch.wait(30) == 0
    finally:
        punch.kill()
        punch.wait()


@pytest.fixture
def loop_device(server: Server) -> Iterator[str]:
    if os.geteuid() != 0 or shutil.which("losetup") is None or not os.path.exists("/dev/loop-control"):
        pytest.skip("loop devices need root and losetup")
    made = server.run("losetup", "--find", "--show", "--direct-io=on", server.path())
    if made.returncode != 0:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_a_loop_device_over_the_file_discards_and_zeroes(server: Server, fd: int, loop_device: str) -> None:
    assert server.run("blkdiscard", "-o", str(BLOCK), "-l", str(2 * BLOCK), loop_device).returncode == 0
    assert server("state")["mapped"] == [4]
    assert server.run("blkdiscard", "-z", "-o", str(4 * BLOCK), "-l", "4096", loop_device).returncode == 0
    assert os.pread(fd, 4097, 4 * BLOCK) == bytes(4096) + b"d"


def test_twenty_asynchronous_writes_that_wait_leave_the_other_volumes_alone(server: Server, loop_device: str) -> None:
    # Direct I/O of a loop device is asynchronous; the kernel's default allows 12 such requests in a mount.
    server("fill")
    writers = [
        subprocess.Popen(
            ["dd", "if=/dev/zero", f"of={loop_device}", "bs=64k", "count=1", f"seek={10 + number}", "oflag=direct"],
            stderr=subprocess.DEVNULL,
        )
        for number in range(20)
    ]
    try:
        server("wait_for_writers", count=20)
        with open(server.path("other"), "rb") as other:
            assert len(other.read()) == MIB  # readahead is asynchronous too
    finally:
        server("make_room")
        assert [writer.wait() for writer in writers] == [0] * 20


def test_behind_a_loop_device_a_waiting_write_holds_up_neither_writes_nor_discards(
    server: Server, fd: int, loop_device: str
) -> None:
    # On the file itself the kernel holds its lock during a synchronous write, see the contract of operations.py.
    server("fill")
    write = ("dd", "if=/dev/zero", f"of={loop_device}", "bs=64k", "count=1", "oflag=direct", "status=none")
    waiting = subprocess.Popen([*write, "seek=100"])
    try:
        server("wait_for_writers", count=1)
        assert server.run(*write, "seek=1").returncode == 0
        assert server.run("blkdiscard", "-o", str(2 * BLOCK), "-l", str(BLOCK), loop_device).returncode == 0
        assert server("state")["mapped"] == [1, 4]
        assert server("state")["nr_waiting"] == 1
    finally:
        server("make_room")
        assert waiting.wait(30) == 0


def test_the_server_outlives_an_unknown_whence(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.lseek(fd, ctypes.c_int64(0), 9) == -1
    assert ctypes.get_errno() == errno.EINVAL
