"""A Backend that passes every verb on, whole, to somebody else: what the control client and the kernel backend share.

Promises: `_pass_on` gets each verb by its name with all its arguments by name (thinfs.dm.verbs). Never: does anything
itself. An open device is the forwarder's own business: `open` is written there.
"""
# mypy: disable-error-code="no-any-return"

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from thinfs.dm.backend import DeviceInfo, OpenDevice, TargetVersion


class ForwardingBackend(ABC):
    @abstractmethod
    async def _pass_on(self, verb: str, /, **arguments: Any) -> Any:
        """The verb's value; a refusal is a ThinfsError."""

    @abstractmethod
    async def open(self, name: str) -> OpenDevice: ...

    async def create(
        self, name: str, table: str | None, *, uuid: str = "", read_only: bool = False, minor: int | None = None
    ) -> DeviceInfo:
        return await self._pass_on("create", name=name, table=table, uuid=uuid, read_only=read_only, minor=minor)

    async def load(self, name: str, table: str, *, read_only: bool = False) -> None:
        await self._pass_on("load", name=name, table=table, read_only=read_only)

    async def clear(self, name: str) -> None:
        await self._pass_on("clear", name=name)

    async def suspend(self, name: str, *, noflush: bool = False, lockfs: bool = True) -> None:
        await self._pass_on("suspend", name=name, noflush=noflush, lockfs=lockfs)

    async def resume(self, name: str) -> None:
        await self._pass_on("resume", name=name)

    async def remove(self, name: str, *, deferred: bool = False) -> None:
        await self._pass_on("remove", name=name, deferred=deferred)

    async def rename(self, name: str, new_name: str) -> None:
        await self._pass_on("rename", name=name, new_name=new_name)

    async def set_uuid(self, name: str, uuid: str) -> None:
        await self._pass_on("set_uuid", name=name, uuid=uuid)

    async def message(self, name: str, message: str, *, sector: int = 0) -> str:
        return await self._pass_on("message", name=name, message=message, sector=sector)

    async def status(self, name: str, *, noflush: bool = False, inactive: bool = False) -> str:
        return await self._pass_on("status", name=name, noflush=noflush, inactive=inactive)

    async def table(self, name: str, *, inactive: bool = False) -> str:
        return await self._pass_on("table", name=name, inactive=inactive)

    async def info(self, name: str, *, inactive: bool = False) -> DeviceInfo:
        return await self._pass_on("info", name=name, inactive=inactive)

    async def wait(self, name: str, event_nr: int) -> DeviceInfo:
        return await self._pass_on("wait", name=name, event_nr=event_nr)

    async def deps(self, name: str) -> Sequence[tuple[int, int]]:
        return await self._pass_on("deps", name=name)

    async def list(self) -> Sequence[DeviceInfo]:
        return await self._pass_on("list")

    async def targets(self) -> Sequence[TargetVersion]:
        return await self._pass_on("targets")
