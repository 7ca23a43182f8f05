"""The commands of dmsetup that ask: status, table, info, ls, deps, wait, targets, version."""

import os
from collections.abc import Awaitable, Callable

from thinfs.dmsetup import report
from thinfs.dmsetup.run import CommandFailed, Run
from thinfs.errors import InvalidArgument

LIBRARY_VERSION = "1.02.185 (2022-05-18)"
DRIVER_VERSION = "4.47.0"


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
