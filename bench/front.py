"""Front to back: fio on a volume of every subject, row after row, the subjects taking turns within each round.

Promises: a round makes fresh volumes; within a row the subjects follow each other directly, in an order that turns
with the round. A row that a subject cannot do is absent for it, with the reason in `notes`.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench.fio import KIB, MIB, Job, measure
from bench.rounds import Row, turned
from bench.subjects import CACHE, SUBJECTS, Maker, Subject, make

VOLUME_BYTES: Final = 256 * MIB
BLOCK_BYTES: Final = 64 * KIB

SEQUENTIAL: Final = (
    Job("1M sequential first write", "write", MIB, total_bytes=VOLUME_BYTES),
    Job("1M sequential overwrite", "write", MIB, total_bytes=VOLUME_BYTES),
    Job("1M sequential read", "read", MIB, total_bytes=VOLUME_BYTES),
)
RANDOM: Final = (
    Job("4K random read", "randread", 4 * KIB),
    Job("4K random write", "randwrite", 4 * KIB),
    Job("4K random read, depth 16", "randread", 4 * KIB, depth=16),
    Job("4K random write, depth 16", "randwrite", 4 * KIB, depth=16),
    Job("64K random read, depth 4", "randread", 64 * KIB, depth=4),
    Job("64K random write, depth 4", "randwrite", 64 * KIB, depth=4),
    Job("4K random write + fsync each", "randwrite", 4 * KIB, fsync_each=True),
)
BUFFERED: Final = (
    Job("buffered: 1M sequential overwrite", "write", MIB, direct=False, total_bytes=VOLUME_BYTES),
    Job("buffered: 1M sequential read", "read", MIB, direct=False, total_bytes=VOLUME_BYTES),
    Job("buffered: 4K random write", "randwrite", 4 * KIB, direct=False),
    Job("buffered: 4K random read", "randread", 4 * KIB, direct=False),
)
# Each 64 KiB block is touched once: 4 KiB of it, then a gap to the next.
COPY_ON_WRITE: Final = (
    Job("4K copy-on-write", f"write:{60 * KIB}", 4 * KIB, total_bytes=1024 * 4 * KIB),
    Job("64K copy-on-write", "randwrite", 64 * KIB, total_bytes=1024 * 64 * KIB),
)
EXT4_FILE_BYTES: Final = 64 * MIB
ON_EXT4: Final = (
    Job("ext4 on loop: 1M sequential write", "write", MIB, total_bytes=EXT4_FILE_BYTES),
    Job("ext4 on loop: 4K random read", "randread", 4 * KIB),
    Job("ext4 on loop: 4K random write, depth 16", "randwrite", 4 * KIB, depth=16),
    Job("ext4 on loop: 4K random write + fsync each", "randwrite", 4 * KIB, fsync_each=True),
)
QUICK: Final = frozenset(
    {
        "1M sequential first write",
        "1M sequential read",
        "4K random read",
        "4K random write",
        "4K random write, depth 16",
        "4K random write + fsync each",
        "4K copy-on-write",
    }
)


@dataclass(slots=True)
class Plan:
    """How much of it: the full run or the quick one."""

    rounds: int
    seconds: float  # of a row that is not sequential
    media: Sequence[str] = ("tmpfs", "disk")
    quick: bool = False

    def jobs(self, jobs: Sequence[Job]) -> list[Job]:
        return [job for job in jobs if not self.quick or job.name in QUICK]


def directory_on(medium: str) -> Path:
    CACHE.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="thinfs-bench-", dir="/dev/shm" if medium == "tmpfs" else CACHE))


ALL: Final[Mapping[str, Maker]] = {name: partial(make, name) for name in SUBJECTS}


def run(plan: Plan, say: Callable[[str], None], subjects: Mapping[str, Maker] = ALL) -> tuple[list[Row], list[str]]:
    rows: dict[tuple[str, str], Row] = {}
    notes: dict[str, None] = {}
    for number in range(plan.rounds):
        for medium in plan.media:
            say(f"front to back on {medium}, round {number + 1} of {plan.rounds}")
            _Round(plan, medium, turned(list(subjects.values()), number), rows, notes).run()
    return list(rows.values()), list(notes)


class _Round:
    def __init__(
        self, plan: Plan, medium: str, order: Sequence[Maker], rows: dict[tuple[str, str], Row], notes: dict[str, None]
    ) -> None:
        self._plan = plan
        self._medium = medium
        self._order = order
        self._rows = rows
        self._notes = notes

    def run(self) -> None:
        directory = directory_on(self._medium)
        try:
            with ExitStack() as stack:
                subjects: list[Subject] = []
                for maker in self._order:
                    subject = maker(directory, VOLUME_BYTES)
                    stack.callback(subject.close)
                    subjects.append(subject)
                self._run_rows(subjects, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _run_rows(self, subjects: list[Subject], directory: Path) -> None:
        plan = self._plan
        for job in plan.jobs((*SEQUENTIAL, *RANDOM, *BUFFERED)):
            self._row(job, [(subject, subject.path) for subject in subjects], VOLUME_BYTES)
        with_snapshots = [subject for subject in subjects if subject.has_snapshots]
        for job in plan.jobs(COPY_ON_WRITE):
            for subject in with_snapshots:
                subject.snapshot()
            self._row(job, [(subject, subject.path) for subject in with_snapshots], VOLUME_BYTES)
        if plan.quick:
            return
        if os.geteuid() != 0:
            self._notes["rows with ext4 on a loop device are left out: they need root"] = None
            return
        with ExitStack() as stack:
            mounted = []
            for subject in subjects:
                try:
                    mounted.append((subject, _ext4_over(subject, directory, stack)))
                except RuntimeError as error:  # qemu 7.2's export loses parallel writes: the mount may be refused
                    self._notes[f"{subject.name}: no ext4 on a loop device over it: {_without_paths(error)}"] = None
            for job in ON_EXT4:
                self._row(job, mounted, EXT4_FILE_BYTES)

    def _row(self, job: Job, paths: Sequence[tuple[Subject, str]], size_bytes: int) -> None:
        key = (self._medium, job.name)
        row = self._rows.setdefault(key, Row(f"front to back, {self._medium}", job.name, job.unit, True))
        for subject, path in paths:
            try:
                value = measure(job, path, size_bytes, self._plan.seconds)
            except RuntimeError as error:
                self._notes[f"{subject.name}, {self._medium}, {job.name}: {_without_paths(error)}"] = None
                print(f"bench: {error}", file=sys.stderr)
                continue
            row.values.setdefault(subject.name, []).append(value)


def _without_paths(error: Exception) -> str:
    """For a note that is kept: its first line, where the names of this run's files say nothing to a reader."""
    return re.sub(r"\S*/\S+", "…", str(error).strip().splitlines()[0])[:300]


def _ext4_over(subject: Subject, directory: Path, stack: ExitStack) -> str:
    """A file in an ext4 on a loop device (direct I/O) over the volume: all written, nothing lazy."""

    def command(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout.strip()

    loop = command("losetup", "--find", "--show", "--direct-io=on", subject.path)
    stack.callback(command, "losetup", "--detach", loop)
    command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", loop)
    mountpoint = directory / f"{subject.name}.ext4"
    mountpoint.mkdir()
    stack.callback(mountpoint.rmdir)
    command("mount", loop, str(mountpoint))
    stack.callback(command, "umount", str(mountpoint))
    path = str(mountpoint / "file")
    with open(path, "wb") as file:
        for _ in range(EXT4_FILE_BYTES // MIB):
            file.write(b"\xa5" * MIB)
        file.flush()
        os.fsync(file.fileno())
    return path
