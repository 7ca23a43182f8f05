"""One history on both sides: the userspace engine in virtual time, a kernel in a guest, and the model beside them.

Promises: every answer compared, then thin_dump and thin_check of both; a difference is shrunk to a few operations
and told as a script with its variant and seed.
"""

import contextlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from errno import ENODEV, ENOENT
from pathlib import Path
from typing import Final, Protocol

import trio
import trio.testing

from kernel_backend import differential, judges
from kernel_backend.batch import Operation, Outcome
from kernel_backend.block_io import digest, pattern
from kernel_backend.channel import GuestFailed
from kernel_backend.runner import Guest
from kernel_backend.uml import GuestKernel
from thinfs.userspace.blocking import run_on_the_spot
from thinfs.userspace.devices import open_device_mapper

from ..conformance import faults
from ..conformance.files import thin_check
from ..conformance.userspace_machines import scratch_directory
from . import disks, history
from .limits import TooLong, real_time
from .model import contradictions
from .variants import Variant

IMAGES: Final = (1 << 30, 16 << 30, 1 << 30)  # metadata, data, origin
HANGS: Final = -1
HANG_SECONDS: Final = 300  # of the engine's virtual time: longer than any wait for space
_NO_SPACE_TIMEOUT: Final = ("dm_thin_pool", "no_space_timeout")
CALL_SECONDS: Final = 30.0  # for the whole of a history in a guest
ENGINE_SECONDS: Final = 60.0
_SHRINK_RUNS: Final = 400
_SHRINK_SECONDS: Final = 90.0


@dataclass(slots=True)
class Result:
    variant: Variant
    operations: list[Operation]
    differences: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)  # digests of the metadata at the end, as thin_dump tells it


class Side(Protocol):
    """Who is held against the engine: a kernel, or a backend of somebody else's."""

    @property
    def name(self) -> str: ...

    @property
    def metadata(self) -> str:
        """Path of the metadata of the last history."""

    def run(self, variant: Variant, operations: Sequence[Operation]) -> list[Outcome]: ...

    def renew(self) -> None:
        """After a failure: as new."""

    def close(self) -> None: ...


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
            # A device with a bio that never ends cannot be closed either: given up, once nothing else can happen.
            with trio.CancelScope() as closing:
                await every_outcome(outcomes, closing)
            if len(outcomes) < len(placed_here):
                raise TooLong("the engine's devices cannot be closed, and not all operations were done")
            return outcomes

        async def every_outcome(outcomes: list[Outcome], closing: trio.CancelScope) -> None:
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
                    closing.deadline = trio.current_time() + HANG_SECONDS
                    await runner.close_all()

        with faults.installed() if disks.breaks(operations) else contextlib.nullcontext():
            try:
                # Where everything waits the clock jumps to what comes next: the end of a wait for space, a commit.
                with real_time(ENGINE_SECONDS):
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

    @classmethod
    def boot(cls, kernel: GuestKernel) -> "KernelSide":
        return cls(Guest(kernel, images=IMAGES, memory_mb=256, call_timeout=CALL_SECONDS))

    @property
    def name(self) -> str:
        return self.guest.kernel.name

    def renew(self) -> None:
        """Another guest for one that is dead or does not answer."""
        self.guest.kill()
        self.guest.close()
        self.guest = KernelSide.boot(self.guest.kernel).guest

    def close(self) -> None:
        self.guest.close()

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
            if not isinstance(sys.exc_info()[1], GuestFailed):  # who does not answer is not asked to clean up
                guest.reset()

    def _create(self, name: str, table: str) -> str:
        info = self.guest.create(name, table)
        return f"{info.major}:{info.minor}"


def compare(variant: Variant, operations: Sequence[Operation], ours: UserspaceSide, theirs: Side | None) -> Result:
    """Without a kernel: the engine against the model and thin_check alone."""
    result = Result(variant, list(operations))
    whole = [*operations, *history.endings(operations)]
    try:
        answers = ours.run(variant, whole)
    except Exception as error:  # a bug of the engine's, or of the tests': a finding either way
        result.differences.append(f"userspace: {told(error)}")
        return result
    ours_dumped = _checked(result, whole, answers, ours.metadata, "userspace")
    result.states = [digest(ours_dumped.encode())]
    if theirs is None:
        return result
    try:
        kernels = theirs.run(variant, whole)
    except Exception as error:
        result.differences.append(f"{theirs.name}: {told(error)}")
        theirs.renew()
        return result
    result.differences += differential.differences(whole, answers, kernels)
    if ours_dumped != _checked(result, whole, kernels, theirs.metadata, "the kernel"):
        result.differences.append("thin_dump differs")
    return result


def told(error: BaseException) -> str:
    """One line; of a group the first that is in it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]


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


def shrunk(result: Result, ours: UserspaceSide, theirs: Side | None) -> Result:
    """Leave out ever smaller pieces as long as something still differs."""
    best, runs, begun = _without_rest(result, ours, theirs), 0, time.monotonic()

    def may_go_on() -> bool:
        return runs < _SHRINK_RUNS and time.monotonic() - begun < _SHRINK_SECONDS

    size = len(best.operations) // 2
    while size and may_go_on():
        begin, removed = 0, False
        while begin < len(best.operations) and may_go_on():
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


def _without_rest(result: Result, ours: UserspaceSide, theirs: Side | None) -> Result:
    """What comes after the first operation whose answers differ has nothing to do with it."""
    numbers = [int(found[1]) for line in result.differences if (found := re.search(r"(?:^|, )(\d+): ", line))]
    end = min(numbers, default=len(result.operations)) + 1
    if end >= len(result.operations) or history.may_hang(result.operations[:end]):
        return result
    tried = compare(result.variant, result.operations[:end], ours, theirs)
    return tried if tried.differences else result


def report(result: Result, seed: int, ours: UserspaceSide, theirs: Side | None) -> str:
    """What a bug report needs."""
    small = shrunk(result, ours, theirs)
    kernel = theirs.name if theirs is not None else "none"
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
