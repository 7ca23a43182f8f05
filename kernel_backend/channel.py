"""The runner's end of a guest's channel: calls from any number of threads over one socket and one memory.

Promises: every call gets its own answer, in any order; requests and bulk data beyond the serial line's measure
go through shared memory; a dead guest ends all calls with GuestFailed, and so does one that does not answer.
Never: a thread of its own. Whoever waits for an answer reads for the others.
"""

import contextlib
import json
import mmap
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from thinfs.errors import from_errno

SLOT_BYTES: Final = 1 << 20
NR_SLOTS: Final = 16
_LINE_BYTES: Final = 200  # longer requests are cheaper through shared memory


class GuestFailed(Exception):
    """The guest did not boot, died or does not answer: no answer of dm-thin, so no ThinfsError."""


class Pending:
    """A call that was sent: it runs in a thread of the guest, whatever else is called meanwhile."""

    def __init__(self, link: "Channel", number: int, name: str, arguments: tuple[Any, ...]) -> None:
        self._link, self._number, self._name, self._arguments = link, number, name, arguments

    @property
    def answered(self) -> bool:
        return self._link.answered(self._number)

    def result(self, timeout: float | None = 20.0) -> Any:
        """The answer, once; waits for it."""
        return self._link.finish(self._number, self._name, self._arguments, timeout)


class Channel:
    def __init__(self, sock: socket.socket, shared: mmap.mmap, describe: Callable[[], str]) -> None:
        """`describe` tells, for the message of an error, what the guest's console says."""
        self._socket = sock
        self._shared = memoryview(shared)
        self._describe = describe
        self._received = b""
        self._send_lock = threading.Lock()
        self._turn = threading.Condition()
        self._reading = False
        self._answers: dict[int, tuple[int, Any]] = {}
        self._last_number = 0
        self._slots = list(range(NR_SLOTS))
        self._slot_free = threading.Condition()

    def close(self) -> None:
        """Ends every waiting call: they find the end of the stream."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Let go of the memory and the socket, once nobody calls any more."""
        self._socket.close()
        with contextlib.suppress(BufferError):  # a thread abandoned in the middle of a copy
            self._shared.release()

    def call(self, name: str, *arguments: Any, own_thread: bool = False, timeout: float | None = None) -> Any:
        number, request = self._request(name, arguments, own_thread)
        if len(request) <= _LINE_BYTES:
            self._send(request, name)
            return self.finish(number, name, arguments, timeout)
        if len(request) > SLOT_BYTES:
            raise ValueError(f"{name}: a request of {len(request)} bytes, the limit is {SLOT_BYTES}")
        with self._slot() as at:
            self._shared[at : at + len(request)] = request
            self._send(f"@{at}:{len(request)}".encode(), name)
            return self.finish(number, name, arguments, timeout)

    def read(self, handle: int, offset: int, length: int, *, own_thread: bool, timeout: float | None) -> bytes:
        parts = []
        with self._slot() as at:
            while length:
                size = min(length, SLOT_BYTES)
                self.call("read_shared", handle, offset, size, at, own_thread=own_thread, timeout=timeout)
                parts.append(bytes(self._shared[at : at + size]))
                offset, length = offset + size, length - size
        return b"".join(parts)

    def write(self, handle: int, offset: int, data: bytes, *, own_thread: bool, timeout: float | None) -> None:
        place: dict[str, Any] = {"own_thread": own_thread, "timeout": timeout}
        with self._slot() as at:
            for begin in range(0, len(data), SLOT_BYTES):
                piece = data[begin : begin + SLOT_BYTES]
                self._shared[at : at + len(piece)] = piece
                self.call("write_shared", handle, offset + begin, len(piece), at, **place)

    def start(self, name: str, *arguments: Any) -> Pending:
        """Send a short call and go on."""
        number, request = self._request(name, arguments, own_thread=True)
        if len(request) > _LINE_BYTES:
            raise ValueError(f"{name}: {len(request)} bytes are too long to be started, the limit is {_LINE_BYTES}")
        self._send(request, name)
        return Pending(self, number, name, arguments)

    def answered(self, number: int) -> bool:
        with self._turn:
            if number in self._answers or self._reading:
                return number in self._answers
            self._reading = True
        self._read_for_all("answered", time.monotonic())
        return number in self._answers

    def wait_until_up(self, timeout: float) -> None:
        self._await_answer(0, "boot", timeout)

    def _request(self, name: str, arguments: tuple[Any, ...], own_thread: bool) -> tuple[int, bytes]:
        with self._send_lock:
            number = self._last_number = self._last_number + 1
        request = [number, own_thread, name, arguments]
        return number, json.dumps(request, separators=(",", ":")).encode()

    def _send(self, line: bytes, name: str) -> None:
        with self._send_lock:
            try:
                self._socket.sendall(line + b"\n")
            except OSError as error:
                raise GuestFailed(f"{name}: the guest is gone ({error})\n{self._describe()}") from None

    def finish(self, number: int, name: str, arguments: tuple[Any, ...], timeout: float | None) -> Any:
        error_number, value = self._await_answer(number, name, timeout)
        if error_number > 0:
            words = " ".join(str(argument) for argument in arguments)
            raise from_errno(error_number, f"{name} {words[:160]}: {value}")
        if error_number < 0:
            raise GuestFailed(f"{name}: {value}")
        return value

    def _await_answer(self, number: int, name: str, timeout: float | None) -> tuple[int, Any]:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._turn:
                while number not in self._answers and self._reading:
                    if not self._turn.wait(None if deadline is None else _remaining(deadline)) and _expired(deadline):
                        break
                if number in self._answers:
                    return self._answers.pop(number)
                if _expired(deadline):
                    raise GuestFailed(f"{name}: no answer in {timeout} s\n{self._describe()}")
                self._reading = True
            self._read_for_all(name, deadline)

    def _read_for_all(self, name: str, deadline: float | None) -> None:
        messages: list[Any] = []
        try:
            messages = self._receive(deadline)
        except OSError as error:
            raise GuestFailed(f"{name}: the guest is gone ({error})\n{self._describe()}") from None
        finally:
            with self._turn:
                self._reading = False
                self._answers.update((m[0], (m[1], m[2])) for m in messages)
                self._turn.notify_all()

    def _receive(self, deadline: float | None) -> list[Any]:
        """Whole messages that arrived; none when the time is up."""
        poll = select.poll()  # not a timeout of the socket, which other threads send on
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(None if deadline is None else _remaining(deadline) * 1000):
            return []
        received = self._socket.recv(1 << 16)
        if not received:
            raise ConnectionResetError("end of the channel")
        *lines, self._received = (self._received + received).split(b"\n")
        return [json.loads(line) for line in lines]

    @contextlib.contextmanager
    def _slot(self) -> Iterator[int]:
        """The offset of a free slot. After GuestFailed it stays taken: a late guest may still use it."""
        with self._slot_free:
            while not self._slots:
                self._slot_free.wait()
            slot = self._slots.pop()
        try:
            yield slot * SLOT_BYTES
        except GuestFailed:
            raise
        except BaseException:
            self._give_slot(slot)
            raise
        self._give_slot(slot)

    def _give_slot(self, slot: int) -> None:
        with self._slot_free:
            self._slots.append(slot)
            self._slot_free.notify()


def _remaining(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())


def _expired(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline
