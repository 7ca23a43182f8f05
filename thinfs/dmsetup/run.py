"""One run of dmsetup: its terminal, how it finds the devices it is about, and how it says that something failed.

A refusal prints dmsetup's line first, which programs parse, then one line `thinfs: REASON` where the kernel
would have logged one, then `Command failed.`: the reason stands where an operator reads it and past
the first line, where containerd and its like stop reading. Words as in docs/reference/dmsetup.md.
"""

import os
import posixpath  # os.path by the name that says: words only, no file system
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from thinfs.dm.backend import Backend, DeviceInfo
from thinfs.dmsetup.options import CommandLine
from thinfs.errors import NoSuchDevice, ThinfsError

T = TypeVar("T")

_NUMBER = re.compile(r"[0-9]+:[0-9]+")


class Console(Protocol):
    """The terminal of one run: what it prints, in order, and the files only the caller may read."""

    def out(self, text: str) -> None: ...

    def err(self, text: str) -> None: ...

    async def flush(self) -> None:
        """Before waiting: what was printed is seen now."""

    async def read(self, path: str | None) -> str:
        """The caller's file of that name, or its standard input."""


class CommandFailed(Exception):
    """The reason has been printed; `Command failed.` and exit status 1 follow."""


class Usage(Exception):
    """Wrong number of words: the usage text follows, and exit status 1."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of dmsetup: its words and options, the device-mapper it speaks to, its terminal."""

    line: CommandLine
    backend: Backend
    console: Console
    mount_dir: str
    cwd: str

    async def ioctl(self, ioctl: str, name: str, call: Awaitable[T], number: str = "") -> T:
        """The answer of `call`; its refusal in the words of libdevmapper, and CommandFailed."""
        try:
            return await call
        except ThinfsError as error:
            self.console.err(f"device-mapper: {ioctl} ioctl on {name} {number} failed: {error.strerror}\n")
            if not isinstance(error, NoSuchDevice):  # the line has said it all
                self.console.err(f"thinfs: {error}\n")
            raise CommandFailed from None

    def fail(self, text: str) -> CommandFailed:
        self.console.err(text + "\n")
        return CommandFailed()

    async def device_name(self, word: str) -> str:
        """The name a word means. A path (below /dev/mapper or the mount directory) must be there, a name need not.
        MAJ:MIN is a number, unless a device has that for its name."""
        if "/" in word:
            directory, name = posixpath.split(posixpath.normpath(posixpath.join(self.cwd, word)))
            if directory not in ("/dev/mapper", self.mount_dir) or not await self._exists(name):
                raise self.fail(f"Device {word} not found")
            return name
        if _NUMBER.fullmatch(word) and not await self._exists(word):
            return await self._by_number(*word.split(":"))
        return word

    async def _exists(self, name: str) -> bool:
        try:
            await self.backend.info(name)
        except NoSuchDevice:
            return False
        return True

    async def _by_number(self, major: str, minor: str) -> str:
        for info in await self.backend.list():
            if (str(info.major), str(info.minor)) == (major, minor):
                return info.name
        raise self.fail(f"Device {major}:{minor} not found")

    async def listed(self) -> Sequence[DeviceInfo]:
        """All devices as the kernel lists them: by name (seen)."""
        return sorted(await self.backend.list(), key=lambda info: os.fsencode(info.name))

    def identified(self) -> bool:
        """Is the device given by -u, or by -j and -m, and not by a word?"""
        return self.line.has("uuid") or (self.line.has("major") and self.line.has("minor"))

    async def by_identity(self) -> str:
        uuid = self.line.value("uuid")
        if uuid is None:
            return await self._by_number(str(self.line.value("major")), str(self.line.value("minor")))
        for info in await self.backend.list():
            if info.uuid == uuid:
                return info.name
        raise self.fail(f"Device with uuid {uuid} not found")

    async def name_and_rest(self, minimum: int, maximum: int | None) -> tuple[str, Sequence[str]]:
        """The device a command is about and the words after it, `minimum` to `maximum` of them."""
        words = self.line.words
        identified = self.identified()
        rest = words if identified else words[1:]
        if (not identified and not words) or len(rest) < minimum or (maximum is not None and len(rest) > maximum):
            raise Usage
        return (await self.by_identity() if identified else await self.device_name(words[0])), rest

    async def each(self, command: Callable[["Run", str], Awaitable[None]]) -> None:
        """The command for every device named; one that fails does not keep the others from their turn."""
        if not self.line.words and not self.identified():
            raise self.fail("No device specified.")
        words: Sequence[str | None] = self.line.words or [None]
        failed = False
        for word in words:
            try:
                await command(self, await self.by_identity() if word is None else await self.device_name(word))
            except CommandFailed:
                failed = True
        if failed:
            raise CommandFailed

    async def selected(self) -> tuple[Sequence[DeviceInfo], bool]:
        """The devices a listing is about, and whether it named one itself; says so when there are none."""
        if not self.line.words and not self.identified():
            infos = await self.listed()
            if not infos:
                self.console.out("No devices found\n")
            return infos, False
        found = []
        for word in self.line.words or [""]:
            name = await self.by_identity() if not word else await self.device_name(word)
            try:
                found.append(await self.backend.info(name))
            except NoSuchDevice:
                raise self.fail("Device does not exist.") from None
        return found, len(found) == 1
