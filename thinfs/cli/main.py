"""`thinfs COMMAND`: hands the words on to the module of the command, imported only then.

A command is a function from its words to an exit status. A link to this script called `dmsetup` is the drop-in, one
called `thin_check` and so on that tool of thin-provisioning-tools.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple


class Command(NamedTuple):
    module: str
    function: str
    does: str


COMMANDS: Mapping[str, Command] = {
    "serve": Command("thinfs.cli.serve", "serve", "start the device-mapper process"),
    "stop": Command("thinfs.cli.serve", "stop", "remove the devices and end it"),
    "up": Command("thinfs.cli.operation", "up", "make the pools and volumes of a file active"),
    "down": Command("thinfs.cli.operation", "down", "remove them"),
    "save": Command("thinfs.cli.operation", "save", "print a file of what is active"),
    "dmsetup": Command("thinfs.cli.dmsetup", "run", "the commands of dmsetup; `thinfs dmsetup help` lists them"),
    "run": Command("thinfs.cli.run", "run", "run LVM, dockerd, the real dmsetup and their like on this server"),
    "docker": Command("thinfs.cli.docker", "main", "a directory of Docker's devicemapper driver"),
    "lvm": Command("thinfs.cli.lvm", "main", "the volumes on LVM disks, without LVM and without root"),
    "check": Command("thinfs.cli.tools", "check", "check a pool's metadata"),
    "dump": Command("thinfs.cli.tools", "dump", "a pool's metadata as XML or text"),
    "ls": Command("thinfs.cli.tools", "ls", "the thins of a pool"),
    "rescue": Command("thinfs.cli.rescue", "main", "what can still be read of a damaged pool, and deleted thins"),
    "map": Command("thinfs.cli.tools", "map_blocks", "which thins map which data blocks"),
    "restore": Command("thinfs.cli.rebuild_tools", "restore", "a pool's metadata from the XML of a dump"),
    "repair": Command("thinfs.cli.rebuild_tools", "repair", "what can be read of a damaged pool, or an older state"),
    "delta": Command("thinfs.cli.mapping_tools", "delta", "what differs between two thins"),
    "rmap": Command("thinfs.cli.mapping_tools", "rmap", "which thin blocks lie on a region of the data"),
    "trim": Command("thinfs.cli.mapping_tools", "trim", "give free data blocks back to the file"),
    "shrink": Command("thinfs.cli.rebuild_tools", "shrink", "make a pool fit into fewer data blocks"),
    "migrate": Command("thinfs.cli.mapping_tools", "migrate", "copy a thin, or what changed of it, out of its pool"),
    "pack": Command("thinfs.cli.rebuild_tools", "pack", "a pool's metadata as a small file"),
    "unpack": Command("thinfs.cli.rebuild_tools", "unpack", "metadata out of such a file"),
    "metadata-size": Command("thinfs.cli.tools", "metadata_size", "how large a metadata device must be"),
    "differential": Command("thinfs.cli.differential", "main", "long histories on the engine and a kernel, compared"),
    "conformance": Command("thinfs.cli.conformance", "main", "dm-thin's contract as a test suite, on any backend"),
    "demo": Command("thinfs.cli.demo", "main", "a walkthrough, narrated, that leaves nothing behind"),
}


# Links to this script of these names are these commands, with the output and exit status of those tools.
THIN_TOOLS: Mapping[str, str] = {
    **{
        f"thin_{name}": name for name in ("check", "dump", "ls", "restore", "repair", "delta", "rmap", "trim", "shrink")
    },
    "thin_metadata_size": "metadata-size",
    "thin_metadata_pack": "pack",
    "thin_metadata_unpack": "unpack",
}


def usage() -> str:
    lines = [f"  {name:<14} {command.does}" for name, command in COMMANDS.items()]
    return "usage: thinfs COMMAND ...\n\n" + "\n".join(lines) + "\n\n`thinfs COMMAND --help` says more.\n"


def run(words: Sequence[str]) -> int:
    if not words:
        sys.stderr.write(usage())
        return 2
    name, *rest = words
    if name in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0
    if name == "--version":
        from importlib.metadata import version

        print(version("thinfs"))
        return 0
    command = COMMANDS.get(name)
    if command is None:
        sys.stderr.write(f"thinfs: {name}: no such command\n{usage()}")
        return 2
    status: int = _function(command)(rest)
    return status


def _function(command: Command) -> Callable[..., int]:
    from importlib import import_module

    function: Callable[..., int] = getattr(import_module(command.module), command.function)
    return function


def main() -> None:
    words = sys.argv[1:]
    called = os.path.basename(sys.argv[0])
    command = THIN_TOOLS.get(called)
    if command is not None:
        sys.exit(to_the_end(called, lambda: _function(COMMANDS[command])(words, called)))
    if called == "dmsetup":
        words = ["dmsetup", *words]
    sys.exit(to_the_end(" ".join(["thinfs", *words[:1]]), lambda: run(words)))


def to_the_end(name: str, command: Callable[[], int]) -> int:
    """The exit status of a command, its output written; in one line an interrupt (130) and an output that is full or
    gone (1; 141 and no line for a pipe that nobody reads)."""
    try:
        try:
            status = command()
        except SystemExit as end:  # argparse
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _ended(f"{name}: interrupted", 130)
    except BaseExceptionGroup as group:  # of trio's nurseries
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        return _ended(f"{name}: interrupted", 130)
    except BrokenPipeError:
        return _ended("", 141)
    except OSError as error:
        what = "standard output" if error.filename is None else error.filename
        return _ended(f"{name}: {what}: {error.strerror or error}", 1)


def _ended(line: str, status: int) -> int:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # what is buffered has nowhere to go, and would say so at exit
    try:
        if line:
            print(line, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(null, 2)
    return status


if __name__ == "__main__":
    main()
