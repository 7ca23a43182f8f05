"""One history on both sides: the userspace engine in virtual time, a kernel in a guest, and the model beside them.

Promises: every answer compared, then thin_dump and thin_check of both; a difference is shrunk to a few operations
and told as a script with its variant and seed.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from errno import ENODEV, ENOENT
from pathlib import Path
from typing import Final

import trio
import trio.testing

from kernel_backend import differential, judges
from kernel_backend.batch import Operation, Outcome
from kernel_backend.block_io import pattern
from kernel_backend.runner import Guest
from tests.conformance.files import thin_check
from tests.conformance.userspace_machines import scratch_directory
from thinfs.userspace.blocking import run_on_the_spot
from thinfs.userspace.devices import open_device_mapper

from . import history
from .model import contradictions
from .variants import Variant

IMAGES: Final = (1 << 30, 16 << 30, 1 << 30)  # metadata, data, origin
_SHRINK_RUNS: Final = 400


@dataclass(slots=True)
class Result:
    variant: Variant
    operations: list[Operation]
    differences: list[str] = field(default_factory=list)


def placed(operations: Sequence[Operation], **words: str) -> list[Operation]:
    def place(operation: Operation) -> Operation:
        return tuple(part.format(**words) if isinstance(part, str) and "{" in part else part for part in operation)

    return [place(operation) for operation in operations]


def origin_content(variant: Variant) -> bytes:
    return pattern(4711, variant.origin_bytes)


def thin_dump(path: str) -> str:
    done = subprocess.run([judges.tool("thin_dump"), path], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stdout if done.returncode == 0 else f"thin_dump failed: {done.returncode}"


class UserspaceSide:
    """Files in memory, made anew for each history."""

    def __init__(self, directory: Path) -> None:
        self.metadata, self.data, self.origin = (str(directory / name) for name in ("metadata", "data", "origin"))

    def run(self, variant: Variant, operations: Sequence[Operation]) -> list[Outcome]:
        for path, size in (
            (self.metadata, variant.metadata_bytes),
            (self.data, variant.data_bytes),
            (self.origin, variant.origin_bytes),
        ):
            with open(path, "wb") as file:
                file.truncate(size)
        Path(self.origin).write_bytes(origin_content(variant))
        placed_here = placed(operations, meta=self.metadata, data=self.data, origin=self.origin)

        async def whole() -> list[Outcome]:
            run_on_the_spot()
            async with open_device_mapper() as mapper:
                return await differential.run(mapper, placed_here)

        return trio.run(whole, clock=trio.testing.MockClock())


def _as_6_1(outcome: Outcome) -> Outcome:
    """A missing path in a table is ENODEV in 6.1, and what the lookup answered, ENOENT, in 6.12 (seen)."""
    return (ENODEV, outcome[1]) if outcome[0] == ENOENT else outcome


class KernelSide:
    """A guest's images below linear devices of the variant's sizes."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    @property
    def metadata(self) -> str:
        return self.guest.images[0].path

    def run(self, variant: Variant, operations: Sequence[Operation]) -> list[Outcome]:
        guest = self.guest
        for image in guest.images:
            image.blank()
        if variant.origin_bytes:
            with open(guest.images[2].path, "r+b") as file:
                file.write(origin_content(variant))
        data = guest.loop_create(variant.data_bytes)[1] if variant.passdown else guest.images[1].device
        words = {
            "meta": self._linear("disk-m", guest.images[0].device, variant.metadata_bytes),
            "data": self._linear("disk-d", data, variant.data_bytes),
            "origin": self._linear("disk-o", guest.images[2].device, variant.origin_bytes or 4096),
        }
        try:
            return [_as_6_1(outcome) for outcome in guest.batch(placed(operations, **words))]
        finally:
            guest.reset()

    def _linear(self, name: str, device: str, size_bytes: int) -> str:
        info = self.guest.create(name, f"0 {size_bytes // 512} linear {device} 0")
        return f"{info.major}:{info.minor}"


def compare(
    variant: Variant, operations: Sequence[Operation], ours: UserspaceSide, theirs: KernelSide | None
) -> Result:
    """Without a kernel: the engine against the model and thin_check alone."""
    result = Result(variant, list(operations))
    whole = [*operations, *history.endings(operations)]
    answers = ours.run(variant, whole)
    if not variant.runs_out:
        result.differences += contradictions(variant, origin_content(variant), whole, answers)
    code, text = thin_check(ours.metadata)
    if code and any(number == 0 for number, _ in answers):
        result.differences.append(f"thin_check of userspace: exit {code}: {text}")
    if theirs is None:
        return result
    kernels = theirs.run(variant, whole)
    result.differences += differential.differences(whole, answers, kernels)
    if not variant.runs_out:
        result.differences += [
            f"kernel, {line}" for line in contradictions(variant, origin_content(variant), whole, kernels)
        ]
    code, text = thin_check(theirs.metadata)
    if code and any(number == 0 for number, _ in kernels):
        result.differences.append(f"thin_check of the kernel: exit {code}: {text}")
    if thin_dump(ours.metadata) != thin_dump(theirs.metadata):
        result.differences.append("thin_dump differs")
    return result


def shrunk(result: Result, ours: UserspaceSide, theirs: KernelSide | None) -> Result:
    """Leave out ever smaller pieces as long as something still differs."""
    best, runs = result, 0
    size = len(best.operations) // 2
    while size and runs < _SHRINK_RUNS:
        begin, removed = 0, False
        while begin < len(best.operations) and runs < _SHRINK_RUNS:
            shorter = best.operations[:begin] + best.operations[begin + size :]
            if history.may_hang(shorter):
                begin += size
                continue
            runs += 1
            tried = compare(best.variant, shorter, ours, theirs)
            if tried.differences:
                best, removed = tried, True
            else:
                begin += size
        size = size if removed and size == 1 else size // 2
    return best


def report(result: Result, seed: int, length: int, ours: UserspaceSide, theirs: KernelSide | None) -> str:
    """What a bug report needs."""
    small = shrunk(result, ours, theirs)
    kernel = theirs.guest.kernel.name if theirs is not None else "none"
    return "\n".join(
        [
            f"variant {result.variant.name}, seed {seed}, length {length}, kernel {kernel}:",
            *result.differences[:5],
            f"shrunk to {len(small.operations)} operations:",
            history.as_commands(small.operations),
            *small.differences[:5],
        ]
    )


@contextlib.contextmanager
def userspace_side() -> Iterator[UserspaceSide]:
    directory = scratch_directory()
    try:
        yield UserspaceSide(directory)
    finally:
        shutil.rmtree(directory)
