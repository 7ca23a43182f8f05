"""A backend of somebody else's, held against the engine: `module:object`, an object that opens a backend.

It is called without arguments and answers an async context manager of a thinfs.dm.backend.Backend, whose tables name
files by their paths; thinfs.userspace.devices.open_device_mapper is one. Never: makes its disks fail or grow, nor sets
its wait for space: histories that need that are left out (`may_run`).
"""

import importlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import trio

from kernel_backend import differential
from kernel_backend.batch import Operation, Outcome
from thinfs.dm.backend import Backend

from ..conformance.userspace_machines import scratch_directory
from .pair import anonymous, origin_content, placed
from .variants import Variant

_NOT: Final = ("growing", "faults", "waiting")
HISTORY_SECONDS: Final = 120.0


def may_run(variant: Variant) -> bool:
    return variant.shape not in _NOT


def loaded(name: str) -> Callable[[], AbstractAsyncContextManager[Backend]]:
    """ImportError or AttributeError where there is no such thing."""
    module, _, attribute = name.partition(":")
    found: Callable[[], AbstractAsyncContextManager[Backend]] = getattr(importlib.import_module(module), attribute)
    return found


class ForeignSide:
    def __init__(self, name: str) -> None:
        self.name = name
        self._open = loaded(name)
        self._directory: Path = scratch_directory()
        self._paths = {disk: str(self._directory / disk) for disk in ("meta", "data", "origin")}

    @property
    def metadata(self) -> str:
        return self._paths["meta"]

    def renew(self) -> None:
        """Each history opens it anew."""

    def close(self) -> None:
        shutil.rmtree(self._directory)

    def run(self, variant: Variant, operations: Sequence[Operation]) -> list[Outcome]:
        sizes = {"meta": variant.metadata_bytes, "data": variant.data_bytes, "origin": 0}
        for disk, size in sizes.items():
            with open(self._paths[disk], "wb") as file:
                file.truncate(size)
        Path(self._paths["origin"]).write_bytes(origin_content(variant))

        async def whole() -> list[Outcome]:
            with trio.fail_after(HISTORY_SECONDS):
                async with self._open() as backend:
                    return await differential.run(backend, placed(operations, **self._paths))

        return anonymous(operations, trio.run(whole), **self._paths)
