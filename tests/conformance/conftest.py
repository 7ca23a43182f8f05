"""The `bench` fixture, once for each backend, and what a backend cannot run.

THINFS_CONFORMANCE_BACKENDS (words of capabilities.BACKENDS) chooses; without it all but the machine's own
kernel, which runs in a guest (test_local_kernel).
"""

import inspect
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import pytest
import trio
import trio.testing

from kernel_backend.uml import KERNEL_6_1, KERNEL_6_12, KERNEL_7_2, GuestKernel
from thinfs.userspace.blocking import run_on_the_spot

from .capabilities import BACKENDS, LACKS
from .ioctl_machines import IoctlServers, ioctl_machine, ioctl_servers
from .kernel_machines import GuestSupply, guest_machine, guest_supply, local_machine
from .userspace_machines import ServerProcess, server_machine, server_process, userspace_machine
from .workbench import Machine, PoolOnBench, Workbench

CHOICE: Final = "THINFS_CONFORMANCE_BACKENDS"
LIMIT_SECONDS: Final = 30
_HERE: Final = os.path.dirname(os.path.abspath(__file__))


def chosen() -> list[str]:
    words = os.environ.get(CHOICE, "").split() or [name for name in BACKENDS if name != "kernel"]
    unknown = set(words) - set(BACKENDS)
    if unknown:
        raise pytest.UsageError(f"{CHOICE}: no backend {', '.join(sorted(unknown))}; there are {', '.join(BACKENDS)}")
    return words


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(name): a capability that a backend may lack (capabilities.LACKS)")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend_name" in metafunc.fixturenames:
        metafunc.parametrize("backend_name", chosen(), scope="session")


async def _limited(function: Callable[..., Awaitable[Any]]) -> Any:
    """In real time, whatever the clock is: a test whose I/O never ends must not hold up the run."""
    with trio.CancelScope() as scope:
        token = trio.lowlevel.current_trio_token()
        timer = threading.Timer(LIMIT_SECONDS, lambda: token.run_sync_soon(scope.cancel))
        timer.daemon = True
        timer.start()
        try:
            return await function()
        finally:
            timer.cancel()
    raise AssertionError(f"not done after {LIMIT_SECONDS} seconds")


def _run(function: Callable[..., Awaitable[Any]], **arguments: Any) -> Any:
    return trio.run(_limited, function, **arguments)


async def _on_the_spot(function: Callable[..., Awaitable[Any]]) -> Any:
    run_on_the_spot()
    return await _limited(function)


def _run_in_virtual_time(function: Callable[..., Awaitable[Any]], *, clock: Any = None, **rest: Any) -> Any:
    return trio.run(_on_the_spot, function, clock=clock or trio.testing.MockClock(), **rest)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, lacking = [], []
    for item in items:
        call = getattr(item, "callspec", None)
        name = call.params.get("backend_name") if call is not None else None
        if name is not None and str(item.path).startswith(_HERE) and isinstance(item, pytest.Function):
            if inspect.iscoroutinefunction(item.function):
                run = _run_in_virtual_time if name == "userspace" else _run
                item.add_marker(pytest.mark.trio(run=run), append=False)
            needed = [word for mark in item.iter_markers("needs") for word in mark.args]
            reasons = [LACKS[name][word] for word in needed if word in LACKS[name]]
            if reasons:
                lacking.append((item, reasons))
                continue
        kept.append(item)
    if lacking:
        config.hook.pytest_deselected(items=[item for item, _ in lacking])
        config.stash[_LACKING] = [f"{item.nodeid}: {'; '.join(reasons)}" for item, reasons in lacking]
        items[:] = kept


_LACKING: Final = pytest.StashKey[list[str]]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    lines = config.stash.get(_LACKING, [])
    if lines:
        terminalreporter.section("not run: the backend lacks what the test needs")
        for line in lines:
            terminalreporter.write_line(line)


def _guest(kernel: GuestKernel) -> Iterator[GuestSupply]:
    if kernel.missing is not None:
        (pytest.skip if kernel.moves_on else pytest.fail)(kernel.missing)
    with guest_supply(kernel) as supply:
        yield supply


@pytest.fixture(scope="session")
def suite_guest_6_1() -> Iterator[GuestSupply]:
    yield from _guest(KERNEL_6_1)


@pytest.fixture(scope="session")
def suite_guest_6_12() -> Iterator[GuestSupply]:
    yield from _guest(KERNEL_6_12)


@pytest.fixture(scope="session")
def suite_guest_7_2() -> Iterator[GuestSupply]:
    yield from _guest(KERNEL_7_2)


@pytest.fixture(scope="session")
def suite_server() -> Iterator[ServerProcess]:
    with server_process("native") as server:
        yield server


@pytest.fixture(scope="session")
def suite_server_pyfuse3() -> Iterator[ServerProcess]:
    with server_process("pyfuse3") as server:
        yield server


@pytest.fixture(scope="session")
def suite_ioctl_servers() -> Iterator[IoctlServers]:
    with ioctl_servers() as servers:
        yield servers


@pytest.fixture
def machine_maker(
    backend_name: str, request: pytest.FixtureRequest
) -> Callable[[], AbstractAsyncContextManager[Machine]]:
    """Sync, so that what lives for the session is made outside of trio."""
    match backend_name:
        case "userspace":
            return userspace_machine
        case "server" | "server-pyfuse3":
            server = request.getfixturevalue("suite_" + backend_name.replace("-", "_"))
            return lambda: server_machine(server)
        case "ioctl":
            servers = request.getfixturevalue("suite_ioctl_servers")
            return lambda: ioctl_machine(servers)
        case "kernel":
            return local_machine
    supply = request.getfixturevalue("suite_guest_" + backend_name.removeprefix("kernel").replace(".", "_"))
    return lambda: guest_machine(supply)


@pytest.fixture
async def bench(machine_maker: Callable[[], AbstractAsyncContextManager[Machine]]) -> AsyncIterator[Workbench]:
    """Ends with everything removed and thin_check on all metadata that was in use, whatever the test did."""
    async with machine_maker() as machine:
        made = Workbench(machine)
        try:
            yield made
        finally:
            with trio.CancelScope(shield=True):
                await made.finish()


@pytest.fixture
async def pool(bench: Workbench) -> PoolOnBench:
    """64 blocks of 64 KiB, no features."""
    return await bench.pool()
