"""Run the operations of kernel_backend.batch through the seam, on any backend, and compare outcomes.

Promises: the same answers, in the same form, as a guest gives to `batch`. What a kernel answers with an errno
alone is compared by errno alone.
"""

from collections.abc import Sequence
from typing import Any, Final

from kernel_backend.batch import BLOCK_OPERATIONS, EVENT_OPERATION, Operation, Outcome
from kernel_backend.block_io import digest, pattern
from thinfs.dm.backend import Backend, OpenDevice
from thinfs.dm.verbs import VERBS
from thinfs.errors import ThinfsError

# Verbs about one device that do not wait for an event.
VERB_OPERATIONS: Final = {
    name: verb for name, verb in VERBS.items() if verb.parameters and name not in BLOCK_OPERATIONS and name != "wait"
}


async def run(backend: Backend, operations: Sequence[Operation]) -> list[Outcome]:
    runner = SeamRunner(backend)
    try:
        return [await runner.outcome(operation) for operation in operations]
    finally:
        await runner.close_all()


def differences(operations: Sequence[Operation], ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> list[str]:
    """One line for each operation whose outcomes differ; empty when the engines agree."""
    return [
        f"{index}: {' '.join(map(str, operation))}: {one} against {other}"
        for index, (operation, one, other) in enumerate(zip(operations, ours, theirs, strict=True))
        if one != other
    ]


class SeamRunner:
    """One operation after the other; devices that I/O has opened stay open until `close_all`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._open: dict[str, OpenDevice] = {}

    async def outcome(self, operation: Operation) -> Outcome:
        kind, name, *arguments = operation
        assert isinstance(kind, str)
        assert isinstance(name, str)
        try:
            return 0, await self._run(kind, name, arguments)
        except ThinfsError as error:
            return error.errno, ""

    async def close_all(self) -> None:
        for name in list(self._open):
            await self._close(name)

    async def _close(self, name: str) -> None:
        device = self._open.pop(name, None)
        if device is not None:
            await device.aclose()

    async def _run(self, kind: str, name: str, arguments: Sequence[Any]) -> str:
        if kind in VERB_OPERATIONS:
            if kind == "remove":
                await self._close(name)
            value = await getattr(self._backend, kind)(**VERB_OPERATIONS[kind].by_name([name, *arguments]))
            return value if isinstance(value, str) else ""
        if kind == EVENT_OPERATION:
            return str((await self._backend.info(name)).event_nr)
        if kind == "close":
            await self._close(name)
            return ""
        if kind not in BLOCK_OPERATIONS:
            raise ValueError(f"operation {kind!r} is unknown")
        if name not in self._open:
            self._open[name] = await self._backend.open(name)
        return await self._block(kind, self._open[name], arguments)

    async def _block(self, kind: str, device: OpenDevice, arguments: Sequence[Any]) -> str:
        if kind == "write_pattern":
            offset, length, seed = arguments
            await device.write(offset, pattern(seed, length))
        elif kind == "read_digest":
            return digest(await device.read(*arguments))
        elif kind == "size_bytes":
            return str(device.size_bytes)
        elif kind == "discard":
            await device.discard(*arguments)
        elif kind == "flush":
            await device.flush()
        return ""
