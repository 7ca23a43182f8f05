"""Operations of a differential test: a list that any engine can run, and what each of them answered.

An operation is a tuple of its name and its arguments, an outcome is (errno, text); both are JSON. It is one of
BLOCK_OPERATIONS or a verb about one device, arguments in the order of thinfs.dm.verbs. Devices are opened at their
first I/O and closed by `close`, `remove` or the end of the list. Written data is `block_io.pattern(seed, length)`,
read data is answered as `block_io.digest`.
Never: imports beyond the standard library (a guest runs the whole list in one call).
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

from kernel_backend.block_io import BlockIO
from kernel_backend.device_mapper import KernelDeviceMapper

Operation: TypeAlias = Sequence[str | int | bool | None]
Outcome: TypeAlias = tuple[int, str]

# `open name`, `write_pattern name offset length seed`, `read_digest name offset length` and so on
BLOCK_OPERATIONS: Final = frozenset(("open", "close", "write_pattern", "read_digest", "discard", "flush", "size_bytes"))
EVENT_OPERATION: Final = "event_nr"


class OperationRunner:
    """Runs operations in place, on this kernel. `kernel_backend.differential` does it through the seam."""

    def __init__(self, mapper: KernelDeviceMapper, blocks: BlockIO) -> None:
        self._mapper = mapper
        self._blocks = blocks
        self._handles: dict[str, int] = {}

    def run(self, operations: Sequence[Operation]) -> list[Outcome]:
        try:
            return [self._outcome(operation) for operation in operations]
        finally:
            for name in list(self._handles):
                self._close(name)

    def _outcome(self, operation: Operation) -> Outcome:
        kind, name, *arguments = operation
        assert isinstance(kind, str)
        assert isinstance(name, str)
        try:
            return 0, self._run(kind, name, arguments)
        except OSError as error:
            return error.errno or 5, ""

    def _run(self, kind: str, name: str, arguments: Sequence[object]) -> str:
        if kind == EVENT_OPERATION:
            return str(self._mapper.info(name)["event_nr"])
        if kind == "close":
            self._close(name)
            return ""
        if kind not in BLOCK_OPERATIONS:
            if kind == "remove":
                self._close(name)
            value = getattr(self._mapper, kind)(name, *arguments)
            return value if isinstance(value, str) else ""
        if name not in self._handles:
            self._handles[name] = self._blocks.open(self._mapper.node(name))
        if kind == "open":
            return ""
        value = getattr(self._blocks, kind)(self._handles[name], *arguments)
        return "" if value is None else str(value)

    def _close(self, name: str) -> None:
        handle = self._handles.pop(name, None)
        if handle is not None:
            self._blocks.close(handle)
