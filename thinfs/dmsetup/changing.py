"""The commands of dmsetup that change devices: create, load, suspend, resume, remove, rename, message."""

from collections.abc import Sequence
from contextlib import suppress

import trio

from thinfs.dmsetup.run import CommandFailed, Run, Usage
from thinfs.dmsetup.tables import table_lines, with_absolute_paths
from thinfs.errors import InvalidArgument, ThinfsError

REMOVE_ATTEMPTS = 25
REMOVE_RETRY_SECONDS = 0.2


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
        with suppress(ThinfsError), trio.CancelScope(shield=True):
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
    noflush, lockfs = run.line.has("noflush"), not run.line.has("nolockfs")
    await run.ioctl("suspend", name, run.backend.suspend(name, noflush=noflush, lockfs=lockfs))


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
