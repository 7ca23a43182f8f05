"""`thinfs COMMAND`: hands the words on to the module of the command, imported only then.

A command is a function from its words to an exit status. A link to this script called `dmsetup` is the drop-in.
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
    "dmsetup": Command("thinfs.cli.dmsetup", "run", "the commands of dmsetup; `thinfs dmsetup help` lists them"),
    "docker": Command("thinfs.cli.docker", "main", "a directory of Docker's devicemapper driver"),
    "lvm": Command("thinfs.cli.lvm", "main", "the volumes on LVM disks, without LVM and without root"),
    "check": Command("thinfs.cli.tools", "check", "check a pool's metadata"),
    "dump": Command("thinfs.cli.tools", "dump", "a pool's metadata as XML or text"),
    "ls": Command("thinfs.cli.tools", "ls", "the thins of a pool"),
    "map": Command("thinfs.cli.tools", "map_blocks", "which thins map which data blocks"),
    "metadata-size": Command("thinfs.cli.tools", "metadata_size", "how large a metadata device must be"),
    "conformance": Command("thinfs.cli.conformance", "main", "dm-thin's contract as a test suite, on any backend"),
    "demo": Command("thinfs.cli.demo", "main", "a walkthrough, narrated, that leaves nothing behind"),
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
    from importlib import import_module

    function: Callable[[list[str]], int] = getattr(import_module(command.module), command.function)
    return function(rest)


def main() -> None:
    words = sys.argv[1:]
    if os.path.basename(sys.argv[0]) == "dmsetup":
        words = ["dmsetup", *words]
    sys.exit(run(words))


if __name__ == "__main__":
    main()
