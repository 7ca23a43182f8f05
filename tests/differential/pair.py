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

from ..conformance import faults
from . import disks, history
from .model import contradictions
from .variants import Variant

IMAGES: Final = (1 << 30, 16 << 30, 1 << 30)  # metadata, data, origin
HANGS: Final = -1
HANG_SECONDS: Final = 1e6  # of the engine's virtual time
_NO_SPACE_TIMEOUT: Final = ("dm_thin_pool", "no_space_timeout")
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


def anonymous(operations: Sequence[Operation], outcomes: Sequence[Outcome], **words: str) -> list[Outcome]:
    """Tables as if nobody had put his disks into them."""

    def without(text: str) -> str:
        for name, word in words.items():
            text = text.replace(f" {word} ", f" {{{name}}} ")
        return text

    return [
        (number, without(text)) if operation[0] == "table" else (number, text)
        for operation, (number, text) in zip(operations, outcomes, strict=True)
    ]


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

        paths = {"meta": self.metadata, "data": self.data}

        async def whole() -> list[Outcome]:
            run_on_the_spot()
            outcomes: list[Outcome] = []
            async with open_device_mapper() as mapper:
                mapper.pools.no_space_timeout = variant.no_space_timeout
                runner = differential.SeamRunner(mapper)
                try:
                    for operation in placed_here:
                        if operation[0] == disks.DISK:
                            disks.change_file(paths[str(operation[1])], operation[2])  # type: ignore[arg-type]
                            outcomes.append((0, ""))
                        else:
                            outcomes.append(await self._outcome(runner, operation))
                finally:
                    await runner.close_all()
            return outcomes

        with faults.installed() if disks.breaks(operations) else contextlib.nullcontext():
            try:
                # Where everything waits the clock jumps to what comes next: the end of a wait for space, a commit.
                outcomes = trio.run(whole, clock=trio.testing.MockClock(autojump_threshold=0))
            finally:
                for path in paths.values():
                    disks.change_file(path, "work")
        return anonymous(operations, outcomes, **paths)

    async def _outcome(self, runner: differential.SeamRunner, operation: Operation) -> Outcome:
        """A bio that nothing will ever complete has no outcome of the kernel's: (HANGS, "")."""
        with trio.move_on_after(HANG_SECONDS):
            return await runner.outcome(operation)
        return (HANGS, "")


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
        linear = disks.LinearDisks(variant, {"meta": guest.images[0].device, "data": data})
        words = {
            "meta": self._create("disk-meta", linear.table("meta")),
            "data": self._create("disk-data", linear.table("data")),
            "origin": self._create(
                "disk-o", f"0 {(variant.origin_bytes or 4096) // 512} linear {guest.images[2].device} 0"
            ),
        }
        expanded, counts = linear.expand(placed(operations, **words))
        guest.set_parameter(*_NO_SPACE_TIMEOUT, str(variant.no_space_timeout))
        try:
            outcomes = disks.collapse(guest.batch(expanded), counts)
            return [_as_6_1(outcome) for outcome in anonymous(operations, outcomes, **words)]
        finally:
            guest.reset()

    def _create(self, name: str, table: str) -> str:
        info = self.guest.create(name, table)
        return f"{info.major}:{info.minor}"


def compare(
    variant: Variant, operations: Sequence[Operation], ours: UserspaceSide, theirs: KernelSide | None
) -> Result:
    """Without a kernel: the engine against the model and thin_check alone."""
    result = Result(variant, list(operations))
    whole = [*operations, *history.endings(operations)]
    answers = ours.run(variant, whole)
    ours_dumped = _checked(result, whole, answers, ours.metadata, "userspace")
    if theirs is None:
        return result
    kernels = theirs.run(variant, whole)
    result.differences += differential.differences(whole, answers, kernels)
    if ours_dumped != _checked(result, whole, kernels, theirs.metadata, "the kernel"):
        result.differences.append("thin_dump differs")
    return result


def _checked(result: Result, whole: Sequence[Operation], answers: Sequence[Outcome], metadata: str, who: str) -> str:
    """One side against the model and thin_check; its thin_dump, "" where nothing has succeeded."""
    if all(number for number, _ in answers):
        return ""
    dumped = thin_dump(metadata)
    if not result.variant.runs_out:
        lines = contradictions(result.variant, origin_content(result.variant), whole, answers, dumped)
        result.differences += [f"{who}, {line}" for line in lines]
    code, text = thin_check(metadata)
    if code:
        result.differences.append(f"thin_check of {who}: exit {code}: {text}")
    return dumped


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


def report(result: Result, seed: int, ours: UserspaceSide, theirs: KernelSide | None) -> str:
    """What a bug report needs."""
    small = shrunk(result, ours, theirs)
    kernel = theirs.guest.kernel.name if theirs is not None else "none"
    return "\n".join(
        [
            f"variant {result.variant.name}, seed {seed}, kernel {kernel}:",
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
