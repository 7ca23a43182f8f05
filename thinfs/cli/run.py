"""`thinfs run -- COMMAND`: any client of device-mapper's ioctls, unmodified, on a thinfs server; started if need be."""

import argparse
import errno
import os
import shlex
import shutil
import sys
from collections.abc import Sequence

from thinfs.cli.dmsetup import connect
from thinfs.cli.serve import directory_of, mount_option
from thinfs.errors import ThinfsError, from_errno, from_oserror
from thinfs.ioctl import seccomp
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
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--seccomp",
        action="store_true",
        default=None,
        help="trap its system calls, and those of all that it starts, besides preloading the library: for static "
        "programs; this is the default where COMMAND is static itself",
    )
    how.add_argument("--no-seccomp", dest="seccomp", action="store_false", help="preload the library only")
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
        environment = {**os.environ, **added}
        if options.seccomp or (options.seccomp is None and _is_static(options.command[0])):
            return _run_under_filter(options.command, environment, directory)
        return _become(options.command, environment)
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


def _is_static(program: str) -> bool:
    path = shutil.which(program)
    return path is not None and seccomp.is_static(path)


def _run_under_filter(command: Sequence[str], environment: dict[str, str], directory: str) -> int:
    try:
        return seccomp.run(command, environment, directory)
    except OSError as error:
        raise from_errno(error.errno or errno.EIO, f"seccomp user notification: {error.strerror}") from None
