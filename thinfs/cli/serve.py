"""`thinfs serve` and `thinfs stop`: the server process from its operator's side. One line for each refusal."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial

import trio

from thinfs.errors import InvalidArgument, ThinfsError, from_oserror
from thinfs.ioctl.environment import without_library
from thinfs.server import paths
from thinfs.server.client import connect
from thinfs.server.daemon import (
    Assembly,
    answers,
    await_end,
    log_to_stderr,
    serve_in_background,
    serve_until_end,
    starting,
)


def mount_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mount",
        metavar="DIR",
        help="where the devices are files; DIR.sock, DIR.ioctl.sock, DIR.lock and DIR.log lie beside it (default: "
        "THINFS_MOUNT, else /run/thinfs for root, $XDG_RUNTIME_DIR/thinfs for others)",
    )


def directory_of(given: str | None) -> str:
    try:
        return paths.mount_dir(given)
    except OSError as error:
        raise from_oserror(error, str(error.filename or error)) from None


def serve(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="thinfs serve", description="The device-mapper process.")
    mount_option(parser)
    parser.add_argument(
        "--backend",
        choices=("userspace", "kernel"),
        default="userspace",
        help="userspace (the default): pools in this process, devices as files; kernel: this machine's own dm-thin",
    )
    parser.add_argument(
        "--no-native",
        action="store_true",
        help="userspace: all I/O through pyfuse3, no threads that serve what is mapped beside the interpreter",
    )
    parser.add_argument("--foreground", action="store_true", help="stay here, log to standard error")
    parser.add_argument("--if-needed", action="store_true", help="no error if a server is there already")
    options = parser.parse_args(arguments)
    try:
        directory = directory_of(options.mount)
        if options.backend == "userspace":
            _leave_preload()
        assembly = _assembly(options.backend, native=not options.no_native)
        return _serve(directory, assembly, foreground=options.foreground, if_needed=options.if_needed)
    except ThinfsError as error:
        print(f"thinfs serve: {error}", file=sys.stderr)
        return 1


def _leave_preload() -> None:
    """Started by a program under `thinfs run`: the server itself must see the machine as it is."""
    others = without_library(os.environ.get("LD_PRELOAD", ""))
    if others is not None:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "LD_PRELOAD": others})


def _assembly(backend: str, *, native: bool) -> Assembly:
    if backend == "kernel":
        if not native:
            raise InvalidArgument("--no-native: the kernel backend serves no I/O")
        from thinfs.cli.kernel_assembly import kernel

        return kernel
    from thinfs.server.assembly import userspace

    return partial(userspace, native=native)


def _serve(directory: str, assembly: Assembly, *, foreground: bool, if_needed: bool) -> int:
    log_to_stderr()
    if foreground:
        if not (if_needed and answers(directory)):
            serve_until_end(directory, assembly, lambda: None)
        return 0
    with starting(directory):
        if if_needed and answers(directory):
            return 0
        why = serve_in_background(directory, assembly)
    if why:
        print(f"thinfs serve: {why}", file=sys.stderr)
    return 1 if why else 0


def stop(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="thinfs stop", description="Remove the devices, unmount, end the server. Refused while devices are open."
    )
    mount_option(parser)
    parser.add_argument("--force", action="store_true", help="even while devices are open: their I/O fails then")
    options = parser.parse_args(arguments)
    try:
        directory = directory_of(options.mount)
        if not answers(directory):
            print(f"thinfs stop: {directory}: no server", file=sys.stderr)
            return 1
        left = trio.run(stop_server, directory, options.force)
    except ThinfsError as error:
        print(f"thinfs stop: {error}", file=sys.stderr)
        return 1
    for device in left:
        print(f"thinfs stop: was in use: {device}", file=sys.stderr)
    await_end(directory)
    return 0


async def stop_server(directory: str, force: bool) -> list[str]:
    connection = await connect(paths.socket_path(directory))
    try:
        return [str(device) for device in await connection.call("stop", force=force)]
    finally:
        with trio.CancelScope(shield=True):
            await connection.aclose()
