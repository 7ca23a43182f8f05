"""The process that touches loop devices, and the file systems on them, in a server's stead (see `agent`).

Such a call may wait in the kernel for the server's answer, where no signal ends it; a thread of the server that
waited so would keep /dev/fuse and the lock open after a SIGKILL, and nobody could ever answer. Promises: each call has
a thread; when the server dies its connection ends, what it had frozen is thawed, and this process ends.
"""

import errno
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any, Final, NoReturn

from thinfs.blockdevs import file_system, loop
from thinfs.blockdevs.loop import InUse, LoopDevice
from thinfs.dead_server import let_go
from thinfs.libc import signal_at_death_of_parent, write_dirty_pages

MAX_CALL_BYTES: Final = 65536
_GRACE_SECONDS: Final = 0.3  # a killed process that holds on for longer waits for itself
_LET_GO_SECONDS: Final = 60.0
_THAW_SECONDS: Final = 10.0
_frozen: Final[dict[int, int]] = {}  # loop number: what `thaw` takes


def _device(number: int, file: list[int] | None = None) -> LoopDevice:
    return LoopDevice(number, None if file is None else (file[0], file[1]))


def _attach(path: str, read_only: bool) -> list[Any]:
    device = loop.attach(path, read_only=read_only)
    return [device.number, device.file]


def _freeze(number: int, server: int) -> bool:
    descriptor = file_system.freeze(_device(number), server)
    if descriptor is None:
        return False
    _frozen[number] = descriptor
    return True


def _thaw(number: int) -> None:
    descriptor = _frozen.pop(number, None)
    if descriptor is not None:
        file_system.thaw(descriptor)
    else:  # frozen by the process before this one
        file_system.thaw_abandoned(_device(number))


def _write_dirty_pages(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        write_dirty_pages(descriptor)
    finally:
        os.close(descriptor)


_CALLS: Final[Mapping[str, Callable[..., Any]]] = {
    "attach": _attach,
    "freeze": _freeze,
    "thaw": _thaw,
    "write_dirty_pages": _write_dirty_pages,
    "is_same": lambda number, file: loop.is_same(_device(number, file)),
    "resize": lambda number: loop.resize(_device(number)),
    "mounted": lambda number: loop.mounted(_device(number)),
    "detach": lambda number, deferred: loop.detach(_device(number), deferred=deferred),
    "sync": lambda number: loop.sync(_device(number)),
    "is_orphan": lambda number, name: loop.is_orphan(_device(number), name),
    "abandon": lambda number: loop.abandon(_device(number)),
    "thaw_abandoned": lambda number: file_system.thaw_abandoned(_device(number)),
}


def _answer(request: bytes, descriptor: int) -> None:
    answer: dict[str, Any]
    try:
        name, arguments = json.loads(request)
        answer = {"ok": _CALLS[name](*arguments)}
    except InUse as error:
        answer = {"in_use": str(error)}
    except OSError as error:
        answer = {"errno": error.errno, "text": error.strerror}
    except Exception:
        traceback.print_exc()
        answer = {"errno": errno.EIO, "text": "a bug, see the server's log"}
    with socket.socket(fileno=descriptor) as connection, suppress(OSError):  # nobody may wait for it any longer
        connection.sendall(json.dumps(answer).encode("ascii"))


class _ServerDied(BaseException):
    pass


def _on_death(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _ServerDied


def _serve(calls: socket.socket) -> bool:
    """Until the server closes its end: has it said that this is the end?"""
    while True:
        request, descriptors, _, _ = socket.recv_fds(calls, MAX_CALL_BYTES, 1)
        if not request:
            return False
        if request == b"end":
            return True
        threading.Thread(target=_answer, args=(request, descriptors[0]), daemon=True).start()


def _thaw_all() -> None:
    for number in list(_frozen):
        with suppress(OSError):
            _thaw(number)
            print(f"/dev/loop{number}: the file system on it was frozen by a suspend: thawed", file=sys.stderr)


def main() -> None:
    """agent_process DESCRIPTOR SERVER DIRECTORY"""
    descriptor, server, directory = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the server, which still needs this one
        signal.signal(number, signal.SIG_IGN)
    ended = False
    with suppress(_ServerDied):
        signal.signal(signal.SIGUSR1, _on_death)
        signal_at_death_of_parent(signal.SIGUSR1)
        if os.getppid() == server:
            ended = _serve(socket.socket(fileno=descriptor))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if not ended:
        let_go(server, directory, grace_seconds=_GRACE_SECONDS, seconds=_LET_GO_SECONDS)
    thawing = threading.Thread(target=_thaw_all, daemon=True)
    thawing.start()
    thawing.join(_THAW_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    main()
