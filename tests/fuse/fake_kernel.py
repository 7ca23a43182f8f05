"""A socket in place of /dev/fuse: requests and answers in the kernel's own form (linux/fuse.h), one a message.

Promises: `ask` numbers a request and sends it, `answer` waits for the next answer of the serving threads. What they
hand to pyfuse3 is had by `handed_to_pyfuse3`, through the function that pyfuse3 calls.
"""

import ctypes
import select
import socket
import struct
from dataclasses import dataclass

from thinfs.fuse import _fuseshim

LOOKUP, READ, WRITE, FSYNC, INTERRUPT = 1, 15, 16, 20, 36
TIMEOUT_MS = 30_000
_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")


@dataclass(frozen=True, slots=True)
class Answer:
    unique: int
    error: int
    data: bytes


class FakeKernel:
    def __init__(self) -> None:
        self.socket, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.io_fd = _fuseshim.prepare()
        self._last_unique = 0

    def start(self) -> None:
        _fuseshim.start(self.theirs.fileno())
        self.theirs.close()

    def close(self) -> None:
        _fuseshim.stop()
        self.socket.close()
        self.theirs.close()

    def ask(self, opcode: int, inode: int, arguments: bytes = b"") -> int:
        self._last_unique += 2
        size = _IN.size + len(arguments)
        self.socket.send(_IN.pack(size, opcode, self._last_unique, inode, 0, 0, 0, 0, 0) + arguments)
        return self._last_unique

    def read(self, inode: int, offset: int, length: int) -> int:
        return self.ask(READ, inode, struct.pack("<QQIIQII", 1, offset, length, 0, 0, 0, 0))

    def write(self, inode: int, offset: int, data: bytes) -> int:
        return self.ask(WRITE, inode, struct.pack("<QQIIQII", 1, offset, len(data), 0, 0, 0, 0) + data)

    def fsync(self, inode: int) -> int:
        return self.ask(FSYNC, inode, struct.pack("<QII", 1, 1, 0))

    def answer(self) -> Answer:
        assert readable(self.socket.fileno()), "no answer"
        message = self.socket.recv(1 << 21)
        size, error, unique = _OUT.unpack_from(message)
        assert size == len(message)
        return Answer(unique, -error, message[_OUT.size :])

    def has_answer(self) -> bool:
        return readable(self.socket.fileno(), 0)

    def taken(self) -> _fuseshim.IORequest:
        """The next request that is Python's; there is only one."""
        assert readable(self.io_fd), "nothing was handed to Python"
        (request,) = _fuseshim.take()
        return request


def readable(fd: int, timeout_ms: int = TIMEOUT_MS) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_ms))


class _FuseBuf(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t), ("flags", ctypes.c_int), ("mem", ctypes.c_void_p), ("fd", ctypes.c_int),
        ("pos", ctypes.c_long), ("mem_size", ctypes.c_size_t),
    )  # fmt: skip


_shim = ctypes.CDLL(_fuseshim.__file__)
_receive = _shim.fuse_session_receive_buf
_receive.argtypes, _receive.restype = [ctypes.c_void_p, ctypes.POINTER(_FuseBuf)], ctypes.c_int
_libc = ctypes.CDLL(None)


def pyfuse3_fd() -> int:
    """The descriptor that pyfuse3 waits at."""
    return int(_shim.fuse_session_fd(None))


def handed_to_pyfuse3() -> tuple[int, int] | int:
    """(opcode, unique) of the next request, or what the call returned instead: -EINTR for none."""
    buffer = _FuseBuf()
    size = int(_receive(None, ctypes.byref(buffer)))
    if size <= 0:
        return size
    assert size == buffer.size
    _, opcode, unique, *_ = _IN.unpack(ctypes.string_at(buffer.mem, size)[: _IN.size])
    _libc.free(ctypes.c_void_p(buffer.mem))
    return opcode, unique
