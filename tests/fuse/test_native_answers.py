"""What Python answers of the requests that threads leave to it, against a socket in place of /dev/fuse."""

import errno
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.fuse.fake_kernel import FakeKernel
from tests.fuse.memory_server import BLOCK_BYTES, MemoryImage
from thinfs.bio import Bio
from thinfs.fuse import _fuseshim
from thinfs.fuse.image import Image
from thinfs.fuse.native import NativeIO

INODE = 7


@dataclass
class Node:
    image: Image
    mtime_ns: int = 0


class Mounted:
    def __init__(self) -> None:
        self.kernel = FakeKernel()
        self.image = MemoryImage("vol", INODE, 16 * BLOCK_BYTES)
        self.node = Node(self.image)
        self.io = NativeIO.__new__(NativeIO)  # its own session is the fake one's
        self.io._opened = lambda handle: self.node if handle == 1 else None
        _fuseshim.route(INODE)
        self.kernel.start()

    def serve_one(self) -> None:
        self.io._begin(self.kernel.taken())

    def close(self) -> None:
        self.kernel.close()
        _fuseshim.unroute(INODE)


@pytest.fixture
def mounted() -> Iterator[Mounted]:
    made = Mounted()
    yield made
    made.close()


def test_reads_writes_and_flushes_are_answered_by_the_image(mounted: Mounted) -> None:
    mounted.kernel.write(INODE, 5, b"hello")
    mounted.serve_one()
    assert mounted.kernel.answer().data[:4] == (5).to_bytes(4, "little")
    assert mounted.node.mtime_ns > 0
    mounted.kernel.read(INODE, 4, 8)
    mounted.serve_one()
    assert mounted.kernel.answer().data == b"\0hello\0\0"
    mounted.kernel.fsync(INODE)
    mounted.serve_one()
    assert mounted.kernel.answer().error == 0 and mounted.image.nr_flushes == 1


def test_a_write_past_the_end_is_cut_off_there_or_finds_no_space(mounted: Mounted) -> None:
    size = mounted.image.size_bytes
    mounted.kernel.write(INODE, size - 3, b"hello")
    mounted.serve_one()
    assert mounted.kernel.answer().data[:4] == (3).to_bytes(4, "little")
    mounted.kernel.write(INODE, size, b"hello")
    mounted.serve_one()
    assert mounted.kernel.answer().error == errno.ENOSPC
    mounted.kernel.read(INODE, size - 3, 10)
    mounted.serve_one()
    assert mounted.kernel.answer().data == b"hel"


def test_what_must_wait_is_answered_when_it_is_done(mounted: Mounted) -> None:
    mounted.image.full = True
    waiting = mounted.kernel.write(INODE, 0, b"later")
    mounted.serve_one()
    mounted.kernel.read(INODE, 0, 1)
    mounted.serve_one()
    assert mounted.kernel.answer().data == b"\0"
    assert not mounted.kernel.has_answer()
    mounted.image.make_room()
    assert mounted.kernel.answer().unique == waiting
    assert bytes(mounted.image.data[:5]) == b"later"


def test_a_read_only_image_refuses_and_a_bug_is_eio(mounted: Mounted, caplog: pytest.LogCaptureFixture) -> None:
    mounted.image.read_only = True
    mounted.kernel.write(INODE, 0, b"x")
    mounted.serve_one()
    assert mounted.kernel.answer().error == errno.EPERM
    mounted.image.buggy = True
    mounted.kernel.read(INODE, 0, 1)
    mounted.serve_one()
    assert mounted.kernel.answer().error == errno.EIO
    assert "a bug" in caplog.text


def test_whoever_completes_a_bio_does_not_hear_of_a_session_that_is_over(mounted: Mounted) -> None:
    mounted.image.full = True
    mounted.kernel.write(INODE, 0, b"later")
    mounted.serve_one()
    (bio,) = mounted.image.waiting
    assert isinstance(bio, Bio)
    mounted.kernel.socket.close()
    mounted.image.make_room()
    assert bio.done
