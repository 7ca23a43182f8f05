"""`thinfs up FILE`, `thinfs down FILE` and `thinfs save`: a pool file against a server, or this machine's dm-thin."""

import argparse
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from thinfs.cli.serve import directory_of, mount_option, serve
from thinfs.dm.backend import Backend
from thinfs.errors import InvalidArgument, NoSuchDevice, ThinfsError
from thinfs.operation import activate
from thinfs.operation.pool_file import BACKENDS, PoolFile, format_pool_file, read_pool_file
from thinfs.server import paths
from thinfs.server.client import ControlClient
from thinfs.server.daemon import answers


def up(arguments: Sequence[str]) -> int:
    parser = _parser("up", "Make what the file asks for active; the server is started if none runs. Twice is once.")
    parser.add_argument("file", metavar="FILE", help="pools and volumes, in TOML")
    return _run("up", parser, arguments, _up)


def down(arguments: Sequence[str]) -> int:
    parser = _parser("down", "Remove the devices that the file names. Refused while one of them is open.")
    parser.add_argument("file", metavar="FILE")
    return _run("down", parser, arguments, _down)


def save(arguments: Sequence[str]) -> int:
    parser = _parser("save", "Print a pool file of what is active now.")
    parser.add_argument("--backend", choices=BACKENDS, default="userspace")
    return _run("save", parser, arguments, _save)


def _parser(name: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"thinfs {name}", description=description)
    mount_option(parser)
    return parser


def _run(
    name: str,
    parser: argparse.ArgumentParser,
    arguments: Sequence[str],
    command: Callable[[argparse.Namespace], int],
) -> int:
    options = parser.parse_args(arguments)
    try:
        return command(options)
    except* ThinfsError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        print(f"thinfs {name}: {error}", file=sys.stderr)
    return 1


def _up(options: argparse.Namespace) -> int:
    file = read_pool_file(options.file)
    if file.backend == "userspace":
        mount = [] if options.mount is None else ["--mount", options.mount]
        if serve([*mount, "--if-needed"]) != 0:
            return 1
    trio.run(_with_backend, options, file.backend, lambda backend: activate.up(backend, file, print))
    return 0


def _down(options: argparse.Namespace) -> int:
    file = read_pool_file(options.file)
    _check_server(options, file.backend)
    trio.run(_with_backend, options, file.backend, lambda backend: activate.down(backend, file, print))
    return 0


def _save(options: argparse.Namespace) -> int:
    _check_server(options, options.backend)

    async def read(backend: Backend) -> None:
        found: PoolFile = await activate.save(backend, options.backend)
        sys.stdout.write(format_pool_file(found))

    trio.run(_with_backend, options, options.backend, read)
    return 0


def _check_server(options: argparse.Namespace, backend: str) -> None:
    directory = directory_of(options.mount)
    if backend == "userspace" and not answers(directory):
        raise NoSuchDevice(f"{directory}: no server")


async def _with_backend(options: argparse.Namespace, name: str, use: Callable[[Backend], Awaitable[None]]) -> None:
    async with _kernel() if name == "kernel" else _server(directory_of(options.mount)) as backend:
        await use(backend)


@asynccontextmanager
async def _server(directory: str) -> AsyncIterator[Backend]:
    client = ControlClient(paths.socket_path(directory))
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def _kernel() -> AsyncIterator[Backend]:
    if os.geteuid() != 0:
        raise InvalidArgument('backend = "kernel": this machine\'s device-mapper is for root')
    from kernel_backend.backend import KernelBackend
    from kernel_backend.local import LocalDeviceMapper

    mapper = await trio.to_thread.run_sync(LocalDeviceMapper)
    try:
        yield KernelBackend(mapper)
    finally:
        mapper.close()
