"""A program, static or not, whose device-mapper ioctls a server answers: by seccomp user notification (Linux 5.9).

Three processes: ours waits for the program and has its exit status; the program runs under the filter; between them,
an ancestor of all that the program starts, is the supervisor, which lives until the last of them has ended.
Promises: signals to us are the program's. Never: runs where a server of thinfs would come under the filter.
"""

import os
import signal
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from thinfs.ioctl import _supervisor

_FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_FROM_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT)  # the program has them too, as one of our group
_ELF_PROGRAM_HEADERS: Final = struct.Struct("<32xQ14xHH")  # e_phoff, e_phentsize, e_phnum of a 64-bit ELF
_PT_INTERP: Final = 3


def is_static(program: str) -> bool:
    """An ELF file that names no dynamic linker: nothing can be preloaded into it. False for what cannot be read."""
    try:
        with open(program, "rb") as file:
            head = file.read(64)
            if len(head) < 64 or head[:5] != b"\x7fELF\x02":
                return False
            start, size, count = _ELF_PROGRAM_HEADERS.unpack_from(head)
            file.seek(start)
            table = file.read(size * count)
    except OSError:
        return False
    kinds = {int.from_bytes(table[at : at + 4], "little") for at in range(0, len(table), size or 1)}
    return _PT_INTERP not in kinds


def run(command: Sequence[str], environment: Mapping[str, str], mount_dir: str) -> int:
    """The status of a shell for `command`; OSError where it cannot be started or there is no seccomp."""
    reader, writer = os.pipe()
    supervisor = os.fork()
    if not supervisor:
        os.close(reader)
        _supervise(command, environment, mount_dir, writer)
    os.close(writer)
    for number in _FROM_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    with os.fdopen(reader, "rb") as report:
        (outcome,) = struct.unpack("<i", report.read(4).ljust(4, b"\0"))
        if outcome <= 0:
            raise OSError(-outcome, os.strerror(-outcome) if outcome else "the supervisor died")
        for number in _FORWARDED:
            signal.signal(number, lambda received, _: os.kill(outcome, received))
        status = report.read(4)
    if len(status) < 4:
        raise OSError(0, "the supervisor died")
    code = os.waitstatus_to_exitcode(struct.unpack("<i", status)[0])
    return code if code >= 0 else 128 - code


def _supervise(command: Sequence[str], environment: Mapping[str, str], mount_dir: str, report: int) -> NoReturn:
    """In the supervisor: says the program's pid or minus an errno, later its wait status."""
    try:
        ours, theirs = socket.socketpair()
        child = os.fork()
        if not child:
            _become(command, environment, theirs)
        theirs.close()
        listener = _await_exec(ours)
        os.write(report, struct.pack("<i", child))
        os.environ.clear()
        os.environ.update(environment)
        for number in (*_FROM_TERMINAL, *_FORWARDED):
            signal.signal(number, signal.SIG_IGN)
        _leave_terminal()
        _supervisor.supervise(listener, mount_dir, child, report)
    except OSError as error:
        os.write(report, struct.pack("<i", -(error.errno or 5)))
    finally:
        os._exit(0)


def _become(command: Sequence[str], environment: Mapping[str, str], link: socket.socket) -> NoReturn:
    """Between the filter and the supervisor's word nothing may be opened or looked up: nobody would answer."""
    status = 126
    try:
        listener = _supervisor.install()
        link.sendmsg([b"\0\0\0\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", listener))])
        os.close(listener)
        link.recv(1)
        os.execvpe(command[0], list(command), dict(environment))
    except OSError as error:
        if link.fileno() >= 0:
            link.send(struct.pack("<i", error.errno or 5))
        print(f"thinfs run: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        status = 127 if isinstance(error, FileNotFoundError) else 126
    finally:
        os._exit(status)


def _await_exec(link: socket.socket) -> int:
    """The descriptor of the notifications; OSError where the filter was refused."""
    data, descriptors, _, _ = socket.recv_fds(link, 4, 1)
    if not descriptors:
        raise OSError(struct.unpack("<i", data.ljust(4, b"\0"))[0] or 5, "seccomp")
    link.send(b"\0")
    return descriptors[0]


def _leave_terminal() -> None:
    """Nothing of the program's is held: whoever waits for the end of its output gets it."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    sys.stdout = sys.stderr = None
