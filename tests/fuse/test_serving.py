"""The serving threads and their table, against a socket in place of /dev/fuse (fake_kernel)."""

import errno
import os
import random
import struct
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Iterator

import pytest

from tests.fuse.conftest import PROJECT, Server
from tests.fuse.fake_kernel import INTERRUPT, LOOKUP, FakeKernel, handed_to_pyfuse3, pyfuse3_fd, readable
from tests.fuse.test_io import InThread
from thinfs.fuse import _fuseshim
from thinfs.fuse._fuseshim import Volume

BLOCK = 65536
SIZE = 64 * BLOCK
INODE = 7


def word(data_block: int, time: int = 0) -> int:
    return data_block << 24 | time


def contents(block: int) -> bytes:
    return bytes([block]) * BLOCK


@pytest.fixture
def data_fd() -> Iterator[int]:
    """64 data blocks, each full of its number."""
    with tempfile.TemporaryFile() as file:
        for block in range(64):
            file.write(contents(block))
        file.flush()
        yield file.fileno()


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    kernel = FakeKernel()
    _fuseshim.route(INODE)
    try:
        kernel.start()
        yield kernel
    finally:
        kernel.close()
        _fuseshim.unroute(INODE)


@pytest.fixture
def volume(kernel: FakeKernel, data_fd: int) -> Iterator[Volume]:
    volume = Volume(data_fd, BLOCK)
    volume.serve(INODE, SIZE, True)
    yield volume
    volume.close()


def test_what_is_known_is_read_without_python(kernel: FakeKernel, volume: Volume) -> None:
    volume.learn(0, word(5))
    unique = kernel.read(INODE, 100, 4096)
    answer = kernel.answer()
    assert (answer.unique, answer.error, answer.data) == (unique, 0, bytes([5]) * 4096)
    assert _fuseshim.counts() == (1, 0, 0)


def test_a_read_over_blocks_that_lie_apart_is_in_the_order_of_the_volume(kernel: FakeKernel, volume: Volume) -> None:
    for thin_block, data_block in ((1, 9), (2, 10), (3, 4)):
        volume.learn(thin_block, word(data_block))
    kernel.read(INODE, 2 * BLOCK - 10, BLOCK + 20)
    assert kernel.answer().data == bytes([9]) * 10 + contents(10) + bytes([4]) * 10


def test_a_read_ends_where_the_device_ends(kernel: FakeKernel, volume: Volume) -> None:
    volume.learn(63, word(3))
    kernel.read(INODE, SIZE - 10, 4096)
    assert kernel.answer().data == bytes([3]) * 10
    kernel.read(INODE, SIZE + 4096, 4096)
    assert kernel.answer().data == b""


def test_what_is_not_known_is_pythons_and_answered_when_it_likes(kernel: FakeKernel, volume: Volume) -> None:
    volume.learn(0, word(1))
    unique = kernel.read(INODE, BLOCK - 8, 16)
    request = kernel.taken()
    assert (request.inode, request.handle, request.operation) == (INODE, 1, _fuseshim.READ)
    assert (request.offset, request.length) == (BLOCK - 8, 16)
    kernel.read(INODE, 0, 1)
    assert kernel.answer().data == b"\1"  # meanwhile
    request.data(b"late" * 4)
    answer = kernel.answer()
    assert (answer.unique, answer.data) == (unique, b"late" * 4)
    with pytest.raises(ValueError, match="answered before"):
        request.fail(errno.EIO)


def test_a_request_that_python_drops_is_an_error_not_a_hang(kernel: FakeKernel, volume: Volume) -> None:
    kernel.read(INODE, 0, 1)
    kernel.taken()
    assert kernel.answer().error == errno.EIO


@pytest.mark.parametrize("size", [3, 4096, 131072])  # copied, copied, its buffer given away
def test_a_write_that_is_pythons_carries_its_data(kernel: FakeKernel, volume: Volume, size: int) -> None:
    data = random.Random(size).randbytes(size)
    kernel.write(INODE, 12345, data)
    request = kernel.taken()
    view = memoryview(request)
    kernel.write(INODE, 0, bytes(size))
    other = kernel.taken()
    assert view == data and request.offset == 12345 and request.operation == _fuseshim.WRITE
    for each in (request, other):
        each.done()
        assert kernel.answer().data == struct.pack("<II", size, 0)


def test_an_unshared_block_is_written_in_place(kernel: FakeKernel, volume: Volume, data_fd: int) -> None:
    volume.learn(0, word(2))
    volume.learn(1, word(8))
    kernel.write(INODE, BLOCK - 3, b"abcdef")
    answer = kernel.answer()
    assert (answer.error, answer.data) == (0, struct.pack("<II", 6, 0))
    assert os.pread(data_fd, 3, 3 * BLOCK - 3) == b"abc" and os.pread(data_fd, 3, 8 * BLOCK) == b"def"
    assert volume.written_ns > 0


def test_a_block_older_than_the_clock_is_read_and_not_written(kernel: FakeKernel, volume: Volume, data_fd: int) -> None:
    volume.learn(0, word(2, time=3))
    volume.learn(1, word(3, time=4))
    volume.shut()
    volume.set_clock(4)
    volume.open()
    kernel.read(INODE, 0, 1)
    assert kernel.answer().data == b"\2"
    kernel.write(INODE, BLOCK - 3, b"abcdef")  # the first shared, the second not: nothing is written
    kernel.taken().done()
    kernel.answer()
    assert os.pread(data_fd, 3, 3 * BLOCK - 3) == b"\2\2\2" and os.pread(data_fd, 3, 3 * BLOCK) == b"\3\3\3"
    kernel.write(INODE, BLOCK, b"mine")
    kernel.answer()
    assert os.pread(data_fd, 4, 3 * BLOCK) == b"mine"


@pytest.mark.parametrize("writable, offset", [(False, 0), (True, SIZE - 2)])
def test_a_write_that_is_refused_is_refused_by_python(
    kernel: FakeKernel, volume: Volume, data_fd: int, writable: bool, offset: int
) -> None:
    volume.serve(INODE, SIZE, writable)
    for thin_block in range(64):
        volume.learn(thin_block, word(thin_block))
    kernel.write(INODE, offset, b"four")
    kernel.taken().fail(errno.ENOSPC)
    assert kernel.answer().error == errno.ENOSPC
    assert b"four" not in os.pread(data_fd, SIZE, 0)


def test_a_device_that_fails_is_tried_again_by_python(kernel: FakeKernel, volume: Volume) -> None:
    volume.learn(0, word(1000))  # past its end
    kernel.read(INODE, 0, 4096)
    kernel.taken().fail(errno.EIO)
    assert kernel.answer().error == errno.EIO


def test_permissions_go_under_a_shut_gate_only(kernel: FakeKernel, volume: Volume) -> None:
    volume.learn(0, word(1))
    volume.learn(1, word(1))
    volume.shut()
    volume.set_clock(1)
    volume.open()
    volume.learn(1, word(3, time=1))  # a shared one, which was only read
    volume.learn(0, word(1, time=1))
    for take_away, arguments in ((volume.forget, (0, 1)), (volume.set_clock, (2,)), (volume.learn, (0, word(2)))):
        with pytest.raises(RuntimeError, match="gate"):
            take_away(*arguments)
    volume.shut()
    volume.learn(0, word(2))
    volume.open()
    kernel.read(INODE, 0, 1)
    assert kernel.answer().data == b"\2"
    with pytest.raises(RuntimeError, match="open already"):
        volume.open()


def test_while_the_gate_is_shut_everything_is_pythons(kernel: FakeKernel, volume: Volume) -> None:
    volume.learn(0, word(1))
    volume.shut()
    volume.shut()
    volume.open()
    kernel.read(INODE, 0, 1)
    kernel.taken().data(b"P")
    assert kernel.answer().data == b"P"
    volume.open()
    kernel.read(INODE, 0, 1)
    assert kernel.answer().data == b"\1"


def test_a_gate_is_shut_when_the_write_under_way_has_ended(server: Server, kernel: FakeKernel) -> None:
    data_fd = os.open(server.path(), os.O_RDWR)
    volume = Volume(data_fd, BLOCK)
    try:
        volume.serve(INODE, SIZE, True)
        volume.learn(0, word(0))
        server("fill")
        kernel.write(INODE, 0, b"under way")
        server("wait_for_writers", count=1)
        shutting = InThread(volume.shut)
        shutting.join(0.2)
        assert shutting.is_alive()
        server("make_room")
        shutting.result()
        assert kernel.has_answer()
        assert os.pread(data_fd, 9, 0) == b"under way"
        volume.open()
    finally:
        server("make_room")
        volume.close()
        os.close(data_fd)


def test_a_slow_volume_holds_up_only_itself(server: Server, kernel: FakeKernel, volume: Volume) -> None:
    """Once it is known to be slow: then whoever serves it lets another thread read first."""
    slow_fd, slow_inode = os.open(server.path(), os.O_RDWR), INODE + 1
    _fuseshim.route(slow_inode)
    slow = Volume(slow_fd, BLOCK)
    try:
        slow.serve(slow_inode, SIZE, True)
        slow.learn(0, word(0))
        volume.learn(0, word(5))
        server("fill")
        kernel.write(slow_inode, 0, b"first")
        server("wait_for_writers", count=1)
        server("make_room")
        assert kernel.answer().error == 0
        server("set", mapped=[])
        server("fill")
        kernel.write(slow_inode, 0, b"again")
        server("wait_for_writers", count=1)
        for _ in range(10):
            kernel.read(INODE, 0, 1)
            assert kernel.answer().data == b"\5"
        server("make_room")
        assert kernel.answer().error == 0
    finally:
        server("make_room")
        slow.close()
        _fuseshim.unroute(slow_inode)
        os.close(slow_fd)


def test_a_flush_with_nothing_to_commit_is_fdatasync(server: Server, kernel: FakeKernel) -> None:
    data_fd = os.open(server.path(), os.O_RDWR)
    volume = Volume(data_fd, BLOCK)
    try:
        volume.serve(INODE, SIZE, True)
        kernel.fsync(INODE)
        kernel.taken().done()
        assert kernel.answer().data == b""
        assert server("state")["nr_flushes"] == 0
        volume.set_plain_flush(True)
        kernel.fsync(INODE)
        assert kernel.answer().error == 0
        assert server("state")["nr_flushes"] == 1
        server("set", broken=True)
        kernel.fsync(INODE)
        assert kernel.answer().error == errno.EIO  # told once: not to be tried again by Python
    finally:
        volume.close()
        os.close(data_fd)


def test_a_leaf_teaches_what_was_unknown(volume: Volume) -> None:
    volume.learn(11, word(1))
    keys, values = array("Q", [10, 11, 12, 13, 600, 99]), array("Q", [word(n) for n in (50, 51, 52, 53, 54, 55)])
    volume.learn_leaf(keys, values, 5, 11, 601)
    assert [volume.word(block) for block in (10, 11, 12, 13, 600, 99)] == [
        None, word(1), word(52), word(53), word(54), None,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="fewer"):
        volume.learn_leaf(keys, values, 7, 0, 100)


def test_forgetting_forgets_the_range_and_no_more(volume: Volume) -> None:
    for block in range(0, 3000, 7):
        volume.learn(block, word(block))
    volume.shut()
    volume.forget(500, 1500)
    for block in range(0, 3000, 7):
        assert volume.word(block) == (None if 500 <= block < 1500 else word(block))
    volume.forget(0, 1 << 40)  # at once, however many
    assert volume.word(0) is None and volume.word(2996) is None
    volume.open()


def test_withdrawn_its_io_is_pythons(kernel: FakeKernel, volume: Volume) -> None:
    volume.learn(0, word(1))
    volume.withdraw(INODE)
    kernel.read(INODE, 0, 1)
    kernel.taken().data(b"P")
    assert kernel.answer().data == b"P"


def test_what_is_no_io_of_ours_goes_to_pyfuse3_in_order(kernel: FakeKernel, volume: Volume) -> None:
    asked = [(LOOKUP, kernel.ask(LOOKUP, 1, b"name\0")), (15, kernel.read(INODE + 1, 0, 4096))]
    kernel.ask(INTERRUPT, 0, bytes(8))  # nothing can be taken back, and the protocol lets us say nothing
    asked.append((LOOKUP, kernel.ask(LOOKUP, 1, b"other\0")))
    for expected in asked:
        assert readable(pyfuse3_fd())
        assert handed_to_pyfuse3() == expected
    assert not readable(pyfuse3_fd(), 0)
    assert handed_to_pyfuse3() == -errno.EINTR


def test_an_unmount_ends_the_session_for_pyfuse3_too(kernel: FakeKernel) -> None:
    kernel.ask(LOOKUP, 1, b"last\0")
    kernel.socket.close()
    assert readable(pyfuse3_fd())
    assert handed_to_pyfuse3() == (LOOKUP, 2)
    for _ in range(3):  # however many wait
        assert readable(pyfuse3_fd())
        assert handed_to_pyfuse3() == 0
    assert _fuseshim.failure() is None


def test_a_thread_that_cannot_go_on_ends_the_session_and_says_why(kernel: FakeKernel) -> None:
    kernel.socket.send(b"no header")
    assert readable(pyfuse3_fd())
    assert handed_to_pyfuse3() == 0
    assert _fuseshim.failure() == "reading requests: Bad message"


def test_an_answer_that_is_refused_ends_the_session(kernel: FakeKernel, volume: Volume) -> None:
    for block in range(16):
        volume.learn(block, word(block))
    kernel.read(INODE, 0, 1 << 20)  # longer than a message of a socket may be
    assert readable(pyfuse3_fd())
    assert handed_to_pyfuse3() == 0
    assert _fuseshim.failure() == "an answer was refused: Message too long"


def test_stopped_no_thread_is_left_and_a_late_answer_goes_nowhere(data_fd: int) -> None:
    before = os.listdir("/proc/self/task")
    kernel = FakeKernel()
    _fuseshim.route(INODE)
    kernel.start()
    kernel.read(INODE, 0, 1)
    request = kernel.taken()
    assert len(os.listdir("/proc/self/task")) > len(before)
    kernel.close()
    _fuseshim.unroute(INODE)
    assert os.listdir("/proc/self/task") == before
    request.data(b"x")


def test_no_descriptor_reaches_a_child(kernel: FakeKernel, volume: Volume) -> None:
    listing = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, close_fds=False).stdout
    assert "eventfd" not in listing


def test_a_table_is_bounded_however_large_the_volumes() -> None:
    program = """
import random, resource, tempfile
from thinfs.fuse import _fuseshim
_fuseshim.limit_table(300)
file = tempfile.TemporaryFile()
one, two = (_fuseshim.Volume(file.fileno(), 65536) for _ in range(2))
nr_blocks = 10 << 40 >> 16
choose = random.Random(1)
for _ in range(20000):
    block = choose.randrange(nr_blocks)
    one.learn(block, block << 24)
    two.learn(block, block + 1 << 24)
    assert one.word(block) == block << 24 and two.word(block) == block + 1 << 24
    other = choose.randrange(nr_blocks)
    assert one.word(other) in (None, other << 24)
assert _fuseshim.table_pages() == 300
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("seed", range(4))
def test_random_histories_agree_with_a_model(kernel: FakeKernel, volume: Volume, data_fd: int, seed: int) -> None:
    """Every answer without Python is the model's, and every block that may be served is."""
    choose = random.Random(seed)
    words: dict[int, int] = {}
    clock, free = 0, list(range(64))
    model = {block: bytearray(contents(block)) for block in range(64)}
    for _ in range(400):
        match choose.randrange(6):
            case 0 if free:
                block = choose.randrange(64)
                if block in words:
                    volume.shut()
                    free.append(words[block] >> 24)
                words_before, words[block] = words.get(block), word(free.pop(0), clock)
                volume.learn(block, words[block])
                if words_before is not None:
                    volume.open()
            case 1:
                begin = choose.randrange(64)
                end = choose.randrange(begin, 65)
                volume.shut()
                volume.forget(begin, end)
                volume.open()
                for block in range(begin, end):
                    if block in words:
                        free.append(words.pop(block) >> 24)
            case 2 if choose.random() < 0.2:
                clock += 1
                volume.shut()
                volume.set_clock(clock)
                volume.open()
            case 3 | 4:
                offset = choose.randrange(SIZE)
                length = min(choose.choice((1, 4096, 65536, 100000)), SIZE - offset)
                kernel.read(INODE, offset, length)
                blocks = range(offset // BLOCK, -(-(offset + length) // BLOCK))
                if all(block in words for block in blocks):
                    whole = b"".join(model[words[block] >> 24] for block in blocks)
                    assert kernel.answer().data == whole[offset % BLOCK :][:length]
                else:
                    kernel.taken().fail(errno.EAGAIN)
                    assert kernel.answer().error == errno.EAGAIN
            case _:
                offset = choose.randrange(SIZE)
                data = choose.randbytes(min(choose.choice((1, 4096, 100000)), SIZE - offset))
                kernel.write(INODE, offset, data)
                blocks = range(offset // BLOCK, -(-(offset + len(data)) // BLOCK))
                if all(block in words and words[block] & 0xFFFFFF >= clock for block in blocks):
                    assert kernel.answer().error == 0
                    for byte_block in blocks:
                        begin = max(offset, byte_block * BLOCK)
                        end = min(offset + len(data), (byte_block + 1) * BLOCK)
                        target = model[words[byte_block] >> 24]
                        target[begin - byte_block * BLOCK : end - byte_block * BLOCK] = data[
                            begin - offset : end - offset
                        ]
                else:
                    kernel.taken().fail(errno.EAGAIN)
                    kernel.answer()
    for block in range(64):
        assert os.pread(data_fd, BLOCK, block * BLOCK) == model[block]
