"""`thinfs run -- COMMAND`: any client of device-mapper's ioctls, unmodified, on a thinfs server; started if need be."""

import argparse
import errno
import os
import shlex
import sys
from collections.abc import Sequence

from thinfs.cli.dmsetup import connect
from thinfs.cli.serve import directory_of, mount_option
from thinfs.errors import ThinfsError, from_errno, from_oserror
from thinfs.ioctl.environment import device_directory, variables


def run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="thinfs run",
        usage="thinfs run [--mount DIR] -- COMMAND ...\n       thinfs run [--mount DIR] --print-env",
        description="Run a client of device-mapper's ioctls (LVM, dockerd, the real dmsetup) on this server.",
    )
    mount_option(parser)
    parser.add_argument(
        "--print-env",
        action="store_true",
        help="print what its environment needs, a line a variable, for EnvironmentFile= of a unit; start nothing",
    )
    parser.add_argument("command", nargs="*", metavar="COMMAND")
    options = parser.parse_args(arguments)
    if options.print_env == bool(options.command):
        parser.error("either --print-env or a command" if options.print_env else "no command")
    try:
        directory = directory_of(options.mount)
        added = variables(directory, os.environ)
        if options.print_env:
            for name, value in added.items():
                print(f"{name}={shlex.quote(value)}")
            return 0
        _reach_server(directory)
        _make_device_directory(device_directory(directory))
        return _become(options.command, {**os.environ, **added})
    except ThinfsError as error:
        print(f"thinfs run: {error}", file=sys.stderr)
        return 1


def _reach_server(directory: str) -> None:
    try:
        connect(directory).close()
    except OSError as error:
        raise from_errno(error.errno or errno.EIO, error.strerror or str(error)) from None


def _make_device_directory(path: str | None) -> None:
    if path is not None:
        try:
            os.makedirs(f"{path}/mapper", 0o700, exist_ok=True)
        except OSError as error:
            raise from_oserror(error, path) from None


def _become(command: Sequence[str], environment: dict[str, str]) -> int:
    """Only returns when it cannot: with the status that a shell gives."""
    try:
        os.execvpe(command[0], list(command), environment)
    except OSError as error:
        print(f"thinfs run: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
