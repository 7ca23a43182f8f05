"""The commands of dmsetup over any backend: what each does, the order it prints in, its exit status.

A refusal prints dmsetup's line first, which programs parse, then one line `thinfs: REASON` where the kernel
would have logged one, then `Command failed.`: the reason stands where an operator reads it and past
the first line, where containerd and its like stop reading. Words as in the transcript reference.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from thinfs.control.dmsetup import report
from thinfs.control.dmsetup.options import BadOption, CommandLine, parse
from thinfs.control.dmsetup.tables import table_lines, with_absolute_paths
from thinfs.dm.backend import Backend, DeviceInfo
from thinfs.errors import InvalidArgument, NoSuchDevice, ThinfsError

T = TypeVar("T")

LIBRARY_VERSION = "1.02.185 (2022-05-18)"
DRIVER_VERSION = "4.47.0"

REMOVE_ATTEMPTS = 25
REMOVE_RETRY_SECONDS = 0.2


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
        """The name a word means: a path of /dev/mapper or of the mount directory must exist, a name need not."""
        for directory in ("/dev/mapper/", self.mount_dir + "/"):
            if word.startswith(directory):
                name = word.removeprefix(directory)
                break
        else:
            if "/" not in word:
                return word
            raise self.fail(f"Device {word} not found")
        try:
            await self.backend.info(name)
        except ThinfsError:
            raise self.fail(f"Device {word} not found") from None
        return name

    async def listed(self) -> Sequence[DeviceInfo]:
        """All devices as the kernel lists them: by name (seen)."""
        return sorted(await self.backend.list(), key=lambda info: os.fsencode(info.name))

    def identified(self) -> bool:
        """Is the device given by -u, or by -j and -m, and not by a word?"""
        return self.line.has("uuid") or (self.line.has("major") and self.line.has("minor"))

    async def by_identity(self) -> str:
        uuid, major, minor = (self.line.value(option) for option in ("uuid", "major", "minor"))
        for info in await self.backend.list():
            if (uuid is not None and info.uuid == uuid) or (
                uuid is None and (str(info.major), str(info.minor)) == (major, minor)
            ):
                return info.name
        if uuid is not None:
            raise self.fail(f"Device with uuid {uuid} not found")
        raise self.fail(f"Device {major}:{minor} not found")

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


async def create(run: Run) -> None:
    if not run.line.words:
        raise run.fail("Please provide a name for the new device.")
    name, *rest = run.line.words
    if "/" in name:
        raise run.fail(f"Invalid device name {name}: it contains a /")
    if len(rest) > 1:
        raise Usage
    read_only = run.line.has("readonly")
    table = None if run.line.has("notable") else await _given_table(run, rest)
    uuid = run.line.value("uuid") or ""
    info = await run.ioctl("create", name, run.backend.create(name, None, uuid=uuid, read_only=read_only))
    if table is None:
        return
    number = f"({info.major}:{info.minor})"
    try:
        await run.ioctl("reload", name, run.backend.load(name, table, read_only=read_only), number)
        await run.ioctl("resume", name, run.backend.resume(name), number)
    except BaseException:
        # Nothing is left behind, also when the client vanishes half-way.
        with trio.CancelScope(shield=True):
            await run.backend.remove(name)
        raise


async def _given_table(run: Run, rest: Sequence[str]) -> str:
    """--table with a table or a file's name, a file as the last word, or standard input."""
    given = run.line.value("table")
    if given is not None and any(blank in given.strip() for blank in " \t\n"):
        text, source = given, "command line"
    else:
        path = given if given is not None else rest[0] if rest else None
        try:
            text, source = await run.console.read(path), path or "stdin"
        except ThinfsError as error:
            raise run.fail(f"{path or 'stdin'}: {error.strerror}") from None
    try:
        lines = table_lines(text, source)
    except InvalidArgument as error:
        raise run.fail(str(error)) from None
    return await with_absolute_paths(lines, run.cwd)


async def load(run: Run) -> None:
    name, rest = await run.name_and_rest(0, 1)
    table = await _given_table(run, rest)
    await run.ioctl("reload", name, run.backend.load(name, table, read_only=run.line.has("readonly")))


async def _remove(run: Run, name: str) -> None:
    if run.line.has("force"):
        await _load_error_target(run, name)
    attempts = REMOVE_ATTEMPTS if run.line.has("retry") else 1
    for attempt in range(1, attempts + 1):
        try:
            await run.ioctl("remove", name, run.backend.remove(name, deferred=run.line.has("deferred")))
            return
        except CommandFailed:
            if attempt == attempts:
                raise
        await run.console.flush()
        await trio.sleep(REMOVE_RETRY_SECONDS)


async def _load_error_target(run: Run, name: str) -> None:
    """Let every I/O fail from now on, so that whoever holds the device open comes to an end."""
    try:
        length = sum(int(line.split()[1]) for line in (await run.backend.table(name)).splitlines())
        await run.backend.load(name, f"0 {length} error", read_only=(await run.backend.info(name)).read_only)
        await run.backend.suspend(name, noflush=True)
        await run.backend.resume(name)
    except ThinfsError:
        return  # a pool cannot become an error target: the removal itself says what is wrong


async def remove(run: Run) -> None:
    # As seen: with --force, a path that is not there is complained of at each of its three steps.
    if run.line.has("force"):
        for word in run.line.words:
            for _ in range(2):
                try:
                    await run.device_name(word)
                except CommandFailed:
                    continue
                break
    await run.each(_remove)


async def remove_all(run: Run) -> None:
    """Everything that is not open, until nothing more goes; open devices are no failure, as in the kernel."""
    if run.line.has("force"):
        for info in await run.backend.list():
            await _load_error_target(run, info.name)
    progress = True
    while progress:
        progress = False
        for info in reversed(await run.backend.list()):
            try:
                await run.backend.remove(info.name, deferred=run.line.has("deferred"))
            except ThinfsError:
                continue
            progress = not run.line.has("deferred")


async def _suspend(run: Run, name: str) -> None:
    await run.ioctl("suspend", name, run.backend.suspend(name, noflush=run.line.has("noflush")))


async def _resume(run: Run, name: str) -> None:
    await run.ioctl("resume", name, run.backend.resume(name))


async def suspend(run: Run) -> None:
    await run.each(_suspend)


async def resume(run: Run) -> None:
    await run.each(_resume)


async def wipe_table(run: Run) -> None:
    await run.each(_load_error_target)


async def clear(run: Run) -> None:
    name, _ = await run.name_and_rest(0, 0)
    await run.ioctl("clear", name, run.backend.clear(name))


async def rename(run: Run) -> None:
    if run.line.has("setuuid"):
        raise run.fail("rename --setuuid: a uuid can be given by create only")
    name, (new_name,) = await run.name_and_rest(1, 1)
    new_name = new_name.removeprefix("/dev/mapper/")
    if "/" in new_name:
        raise run.fail(f"Invalid device name {new_name}: it contains a /")
    await run.ioctl("rename", name, run.backend.rename(name, new_name))


async def message(run: Run) -> None:
    words = run.line.words[0 if run.identified() else 1 :]
    if len(words) < 2:
        run.console.err("Incorrect number of arguments.\n")
        raise Usage
    if not words[0].isdecimal():
        raise run.fail(f"Invalid sector {words[0]}")
    name, _ = await run.name_and_rest(2, None)
    answer = await run.ioctl("message", name, run.backend.message(name, " ".join(words[1:]), sector=int(words[0])))
    if answer:
        run.console.out(answer.rstrip("\n") + "\n")


async def _target_lines(run: Run, read: Callable[[str], Awaitable[str]], ioctl: str) -> None:
    infos, single = await run.selected()
    wanted = run.line.value("target")
    for info in infos:
        try:
            text = await run.ioctl(ioctl, info.name, read(info.name))
        except CommandFailed:
            if single:
                raise
            continue  # it went meanwhile
        lines = text.split("\n") if text else []
        if wanted is not None:
            lines = [line for line in lines if line.split()[2] == wanted]
            if not lines:
                continue
        if run.line.has("verbose"):
            run.console.out(report.long_form(info))
        prefix = "" if single else f"{info.name}: "
        for line in lines or ([] if single else [""]):
            run.console.out(f"{prefix}{line}\n")


async def status(run: Run) -> None:
    noflush = run.line.has("noflush")
    await _target_lines(run, lambda name: run.backend.status(name, noflush=noflush), "status")


async def table(run: Run) -> None:
    for word in run.line.words:  # here an absent device is the ioctl's to complain of
        name = await run.device_name(word)
        await run.ioctl("table", name, run.backend.info(name))
    inactive = run.line.has("inactive")
    await _target_lines(run, lambda name: run.backend.table(name, inactive=inactive), "table")


async def info(run: Run) -> None:
    infos, _ = await run.selected()
    if not infos:
        return
    if not run.line.has("columns"):
        run.console.out("".join(map(report.long_form, infos)))
        return
    try:
        names = report.column_names(run.line.value("options"))
    except InvalidArgument as error:
        raise run.fail(str(error)) from None
    run.console.out(
        report.columns(infos, names, headings=not run.line.has("noheadings"), separator=run.line.value("separator"))
    )


async def ls(run: Run) -> None:
    infos = await run.listed()
    if not infos:
        run.console.out("No devices found\n")
        return
    if run.line.has("tree"):
        uses = {(info.major, info.minor): await run.backend.deps(info.name) for info in infos}
        run.console.out(report.tree(infos, uses))
        return
    wanted = run.line.value("target")
    for info in infos:
        if wanted is None:
            run.console.out(f"{info.name}\t({info.major}:{info.minor})\n")
        elif wanted in [line.split()[2] for line in (await run.backend.table(info.name)).splitlines()]:
            run.console.out(f"{info.name}\t({info.major}, {info.minor})\n")


async def deps(run: Run) -> None:
    if not run.line.words and not run.identified():
        infos, single = await run.selected()
        names = [info.name for info in infos]
    else:
        name, _ = await run.name_and_rest(0, 0)
        names, single = [name], True
    form = run.line.value("options") or "devno"
    if form not in ("devno", "devname", "blkdevname"):
        raise run.fail(f"deps -o {form}: not one of devno, devname, blkdevname")
    ours = {(info.major, info.minor): info for info in await run.backend.list()}

    def label(number: tuple[int, int]) -> str:
        if number in ours:
            return ours[number].name if form == "devname" else f"dm-{number[1]}"
        link = f"/sys/dev/block/{number[0]}:{number[1]}"
        return os.path.basename(os.readlink(link)) if os.path.islink(link) else f"{number[0]}:{number[1]}"

    for name in names:
        numbers = await run.ioctl("deps", name, run.backend.deps(name))
        prefix = "" if single else f"{name}: "
        run.console.out(prefix + report.dependencies(numbers, None if form == "devno" else label))


async def wait(run: Run) -> None:
    name, rest = await run.name_and_rest(0, 1)
    event_nr = rest[0] if rest else "0"
    if not event_nr.isdecimal():
        raise run.fail(f"Invalid event number {event_nr}")
    await run.console.flush()
    info = await run.ioctl("waitevent", name, run.backend.wait(name, int(event_nr)))
    if run.line.has("verbose"):
        run.console.out(report.long_form(info))


async def mangle(run: Run) -> None:
    infos, _ = await run.selected()
    for info in infos:
        run.console.out(f"{info.name}: {info.uuid or '[no UUID]'}: name already in correct form\n")


async def mknodes(run: Run) -> None:
    """Nothing to make: the files of the devices are there as long as the devices are."""


async def targets(run: Run) -> None:
    for target in await run.backend.targets():
        major, minor, patch = target.version
        run.console.out(f"{target.name:<16} v{major}.{minor}.{patch}\n")


async def version(run: Run) -> None:
    run.console.out(f"Library version:   {LIBRARY_VERSION}\nDriver version:    {DRIVER_VERSION}\n")


async def help_(run: Run) -> None:
    run.console.out(usage())


COMMANDS: Mapping[str, tuple[Callable[[Run], Awaitable[None]], str]] = {
    "create": (create, "<name> [-u <uuid>] [-r] [-n | --table <table or file> | <table file>]"),
    "remove": (remove, "[-f|--force] [--retry] [--deferred] <device>..."),
    "remove_all": (remove_all, "[-f|--force] [--deferred]"),
    "suspend": (suspend, "[--noflush] <device>..."),
    "resume": (resume, "<device>..."),
    "load": (load, "<device> [-r] [--table <table or file> | <table file>]"),
    "reload": (load, "<device> [-r] [--table <table or file> | <table file>]"),
    "clear": (clear, "<device>"),
    "wipe_table": (wipe_table, "<device>..."),
    "rename": (rename, "<device> <new name>"),
    "message": (message, "<device> <sector> <message>"),
    "ls": (ls, "[--target <target type>] [--tree]"),
    "info": (info, "[-c [-o <fields>] [--noheadings] [--separator <separator>]] [<device>...]"),
    "deps": (deps, "[-o devno|devname|blkdevname] [<device>]"),
    "status": (status, "[--noflush] [--target <target type>] [<device>...]"),
    "table": (table, "[--inactive] [--target <target type>] [<device>...]"),
    "wait": (wait, "<device> [<event number>]"),
    "mknodes": (mknodes, "[<device>...]"),
    "mangle": (mangle, "[<device>...]"),
    "targets": (targets, ""),
    "version": (version, ""),
    "help": (help_, ""),
}


def usage() -> str:
    lines = [f"\t{name} {words}".rstrip() for name, (_, words) in COMMANDS.items()]
    return "Usage:\n\ndmsetup <command> [<options>]\n\n" + "\n".join(lines) + "\n"


async def run_dmsetup(argv: Sequence[str], *, backend: Backend, console: Console, mount_dir: str, cwd: str) -> int:
    """One run with the arguments `argv`; the exit status."""
    try:
        line = parse(argv)
        name = "version" if line.has("version") else "help" if line.has("help") else line.command
        if not name:
            console.err("Please supply a command.\n")
            raise Usage
        if name not in COMMANDS:
            console.err(f"Unknown command {name}\n")
            raise Usage
        await COMMANDS[name][0](Run(line, backend, console, mount_dir, cwd))
    except BadOption as error:
        console.err(f"dmsetup: {error}\n{usage()}")
        return 1
    except Usage:
        console.err(usage())
        return 1
    except CommandFailed:
        console.err("Command failed.\n")
        return 1
    return 0
