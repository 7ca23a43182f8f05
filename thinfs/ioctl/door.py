"""The door: a Unix socket on which programs' ioctls of /dev/mapper/control arrive, and its answers.

    request = number: u32, size: u32, size bytes of struct dm_ioctl        the number's low 16 bits are enough
    answer  = errno: u32, size: u32, size bytes to copy back               little endian

One ioctl a connection, so that one which waits delays no other; closing it cancels the ioctl, as a signal does.
A number of our own asks who uses a device. A connection that says nothing is an open /dev/mapper/control.
Promises: whatever a client sends harms its own connection only.
"""

import errno
import logging
import os
import struct
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import trio

from thinfs.dm import ioctl
from thinfs.dm.backend import Backend
from thinfs.errors import NoSuchDevice, ThinfsError
from thinfs.ioctl.commands import perform

log = logging.getLogger(__name__)

_FRAME: Final = struct.Struct("<II")
_VERSION: Final = struct.Struct("<3I")
_MINOR: Final = struct.Struct("<I")
HOLDERS: Final = 0xF0  # no ioctl of device-mapper's: who uses the device of a minor number, answered by a directory
MAX_REQUEST_BYTES: Final = 16 << 20  # the kernel takes what it can allocate


@dataclass(slots=True)
class Door:
    backend: Backend
    # Before an ioctl: what the kernel has yet to tell of closed image files is told, so that open counts are true.
    settle: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    show_holders: Callable[[int, Iterable[int]], str] | None = None  # see Numbers

    async def handle(self, stream: trio.abc.Stream) -> None:
        """Serve one connection to its end; raises nothing of its client's doing."""
        async with stream:
            try:
                await self._serve(stream)
            except trio.BrokenResourceError:
                pass  # the client went
            except Exception:
                log.exception("an ioctl ended by a bug of ours")

    async def _serve(self, stream: trio.abc.Stream) -> None:
        frame = await _receive(stream, _FRAME.size)
        if len(frame) < _FRAME.size:
            return  # an open control node, closed again
        number, size = _FRAME.unpack(frame)
        if (number >> 8) & 0xFF != ioctl.TYPE or size > MAX_REQUEST_BYTES:
            await _send(stream, errno.ENOTTY if size <= MAX_REQUEST_BYTES else errno.ENOMEM, b"")
            return
        raw = await _receive(stream, size)
        if len(raw) < size:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_when_gone, stream, nursery.cancel_scope)
            if number & 0xFF == HOLDERS and self.show_holders is not None and size == _MINOR.size:
                await _send(stream, 0, os.fsencode(self.show_holders(*await self._holders(raw))))
            else:
                await _send(stream, *await self.answer(number & 0xFF, raw))
            nursery.cancel_scope.cancel()

    async def _holders(self, raw: bytes) -> tuple[int, list[int]]:
        """(minor, the minors of the devices whose live table names it)."""
        (minor,) = _MINOR.unpack(raw)
        infos = await self.backend.list()
        major = infos[0].major if infos else 0
        found = []
        for info in infos:
            with suppress(NoSuchDevice):  # it went meanwhile
                if (major, minor) in await self.backend.deps(info.name):
                    found.append(info.minor)
        return minor, found

    async def answer(self, command_number: int, raw: bytes) -> tuple[int, bytes]:
        """(errno, bytes to copy back): of a refusal the version only, as device-mapper writes it in any case."""
        version = _VERSION.pack(*ioctl.VERSION)
        if len(raw) < _VERSION.size:
            return errno.EINVAL, b""
        asked_major, asked_minor, _ = _VERSION.unpack_from(raw)
        if asked_major != ioctl.VERSION[0] or asked_minor > ioctl.VERSION[1]:
            return errno.EINVAL, version
        if command_number >= len(ioctl.COMMANDS):
            return errno.ENOTTY, version
        command = ioctl.COMMANDS[command_number]
        if command == "version":
            return 0, version
        try:
            await self.settle()
            return 0, await perform(self.backend, command, raw)
        except ThinfsError as error:
            # LVM asks for many a device that is not there.
            level = logging.INFO if isinstance(error, NoSuchDevice) else logging.WARNING
            log.log(level, "%s refused: %s (errno %d)", command, error, error.errno)
            return error.errno, version
        except ioctl.MalformedBuffer as error:
            log.warning("%s refused: %s (EINVAL)", command, error.strerror)
            return errno.EINVAL, version
        except Exception:
            log.exception("%s: a bug, answered EIO", command)
            return errno.EIO, version


async def _receive(stream: trio.abc.Stream, size: int) -> bytes:
    """Less than `size` bytes at the end of the stream only."""
    received = b""
    while len(received) < size and (data := await stream.receive_some(size - len(received))):
        received += data
    return received


async def _send(stream: trio.abc.Stream, number: int, data: bytes) -> None:
    await stream.send_all(_FRAME.pack(number, len(data)) + data)


async def _cancel_when_gone(stream: trio.abc.Stream, scope: trio.CancelScope) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.receive_some(1)
    scope.cancel()
