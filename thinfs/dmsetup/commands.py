"""The table of dmsetup's commands, and one run over any backend: from the words to the exit status."""

from collections.abc import Awaitable, Callable, Mapping, Sequence

from thinfs.dm.backend import Backend
from thinfs.dmsetup import asking, changing
from thinfs.dmsetup.options import BadOption, parse
from thinfs.dmsetup.run import CommandFailed, Console, Run, Usage


async def help_(run: Run) -> None:
    run.console.out(usage())


COMMANDS: Mapping[str, tuple[Callable[[Run], Awaitable[None]], str]] = {
    "create": (changing.create, "<name> [-u <uuid>] [-r] [-n | --table <table or file> | <table file>]"),
    "remove": (changing.remove, "[-f|--force] [--retry] [--deferred] <device>..."),
    "remove_all": (changing.remove_all, "[-f|--force] [--deferred]"),
    "suspend": (changing.suspend, "[--noflush] [--nolockfs] <device>..."),
    "resume": (changing.resume, "<device>..."),
    "load": (changing.load, "<device> [-r] [--table <table or file> | <table file>]"),
    "reload": (changing.load, "<device> [-r] [--table <table or file> | <table file>]"),
    "clear": (changing.clear, "<device>"),
    "wipe_table": (changing.wipe_table, "<device>..."),
    "rename": (changing.rename, "<device> <new name>"),
    "message": (changing.message, "<device> <sector> <message>"),
    "ls": (asking.ls, "[--target <target type>] [--tree]"),
    "info": (asking.info, "[-c [-o <fields>] [--noheadings] [--separator <separator>]] [<device>...]"),
    "deps": (asking.deps, "[-o devno|devname|blkdevname] [<device>]"),
    "status": (asking.status, "[--noflush] [--target <target type>] [<device>...]"),
    "table": (asking.table, "[--inactive] [--target <target type>] [<device>...]"),
    "wait": (asking.wait, "<device> [<event number>]"),
    "mknodes": (asking.mknodes, "[<device>...]"),
    "mangle": (asking.mangle, "[<device>...]"),
    "targets": (asking.targets, ""),
    "version": (asking.version, ""),
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
