"""The synchronous calls of a kernel's device-mapper, typed, over whatever carries them.

Promises: the surface of thinfs.dm.backend without `async`, the same errors, and block I/O by handle.
A transport is a guest's channel or this process; it answers what KernelDeviceMapper and BlockIO answer.
"""
# mypy: disable-error-code="no-any-return"

from collections.abc import Sequence
from typing import Any, Protocol

from kernel_backend.batch import Operation, Outcome
from thinfs.dm.backend import DeviceInfo, TargetVersion
from thinfs.dm.verbs import VERBS


class Transport(Protocol):
    """Failures are ThinfsErrors with the kernel's errno."""

    def call(self, name: str, *arguments: Any) -> Any: ...

    def read(self, handle: int, offset: int, length: int) -> bytes: ...

    def write(self, handle: int, offset: int, data: bytes) -> None: ...


class DeviceMapperCalls:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._call = transport.call

    def version(self) -> tuple[int, int, int]:
        """Of the ioctl interface, not of a target."""
        major, minor, patch = self._call("version")
        return major, minor, patch

    def verb(self, verb: str, /, **arguments: Any) -> Any:
        """Any verb of thinfs.dm.verbs but `open`, its arguments by name; the methods are this, typed."""
        known = VERBS[verb]
        return known.answer.from_json(self._call(verb, *known.in_order(arguments)))

    def create(
        self, name: str, table: str | None, *, uuid: str = "", read_only: bool = False, minor: int | None = None
    ) -> DeviceInfo:
        return self.verb("create", name=name, table=table, uuid=uuid, read_only=read_only, minor=minor)

    def load(self, name: str, table: str, *, read_only: bool = False) -> None:
        self.verb("load", name=name, table=table, read_only=read_only)

    def clear(self, name: str) -> None:
        self.verb("clear", name=name)

    def suspend(self, name: str, *, noflush: bool = False, lockfs: bool = True) -> None:
        self.verb("suspend", name=name, noflush=noflush, lockfs=lockfs)

    def resume(self, name: str) -> None:
        self.verb("resume", name=name)

    def remove(self, name: str, *, deferred: bool = False) -> None:
        self.verb("remove", name=name, deferred=deferred)

    def rename(self, name: str, new_name: str) -> None:
        self.verb("rename", name=name, new_name=new_name)

    def set_uuid(self, name: str, uuid: str) -> None:
        self.verb("set_uuid", name=name, uuid=uuid)

    def message(self, name: str, message: str, *, sector: int = 0) -> str:
        return self.verb("message", name=name, message=message, sector=sector)

    def status(self, name: str, *, noflush: bool = False, inactive: bool = False) -> str:
        return self.verb("status", name=name, noflush=noflush, inactive=inactive)

    def table(self, name: str, *, inactive: bool = False) -> str:
        return self.verb("table", name=name, inactive=inactive)

    def info(self, name: str, *, inactive: bool = False) -> DeviceInfo:
        return self.verb("info", name=name, inactive=inactive)

    def wait(self, name: str, event_nr: int) -> DeviceInfo:
        return self.verb("wait", name=name, event_nr=event_nr)

    def deps(self, name: str) -> Sequence[tuple[int, int]]:
        return self.verb("deps", name=name)

    def list(self) -> Sequence[DeviceInfo]:
        """In the kernel's order, which is by name."""
        return self.verb("list")

    def targets(self) -> Sequence[TargetVersion]:
        return self.verb("targets")

    def node(self, name: str) -> str:
        """The path of a mapped device's node."""
        return str(self._call("node", name))

    def open(self, path: str, *, read_only: bool = False) -> int:
        """A handle on any block device, for direct I/O."""
        return int(self._call("open", path, read_only))

    def close_handle(self, handle: int) -> None:
        self._call("close", handle)

    def size_bytes(self, handle: int) -> int:
        return int(self._call("size_bytes", handle))

    def read(self, handle: int, offset: int, length: int) -> bytes:
        return self._transport.read(handle, offset, length)

    def read_digest(self, handle: int, offset: int, length: int) -> str:
        """`block_io.digest` of what is there: nothing but the digest crosses a guest's boundary."""
        return str(self._call("read_digest", handle, offset, length))

    def write(self, handle: int, offset: int, data: bytes) -> None:
        self._transport.write(handle, offset, data)

    def write_pattern(self, handle: int, offset: int, length: int, seed: int) -> None:
        """Write `block_io.pattern(seed, length)`, made at the other end."""
        self._call("write_pattern", handle, offset, length, seed)

    def discard(self, handle: int, offset: int, length: int) -> None:
        self._call("discard", handle, offset, length)

    def flush(self, handle: int) -> None:
        self._call("flush", handle)

    def batch(self, operations: Sequence[Operation]) -> Sequence[Outcome]:
        """Run a list of kernel_backend.batch in one call; refusals are outcomes, not exceptions."""
        return [(number, text) for number, text in self._call("batch", [*operations])]
