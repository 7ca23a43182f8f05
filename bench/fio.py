"""The I/O of the rows, by fio: which jobs there are, and what one of them measured.

Promises: the same command for every subject; every write job ends in an fsync that counts in its time, so nobody
wins by leaving data behind. Never: creates or extends the file, which each subject has made.
"""

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

KIB: Final = 1024
MIB: Final = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Job:
    """`seconds` of time where it is None; else the whole of `total_bytes` once."""

    name: str
    rw: str
    block_bytes: int
    depth: int = 1
    direct: bool = True
    fsync_each: bool = False
    total_bytes: int | None = None

    @property
    def unit(self) -> str:
        return "MB/s" if self.block_bytes >= MIB else "IO/s"

    def arguments(self, path: str, size_bytes: int, seconds: float) -> list[str]:
        writes = "write" in self.rw
        engine = "psync" if self.depth == 1 else "libaio"
        extent = (
            [f"--io_size={self.total_bytes}"]
            if self.total_bytes is not None
            else ["--time_based", f"--runtime={int(seconds * 1000)}ms"]
        )
        return [
            "fio", "--name=job", f"--filename={path}", f"--size={size_bytes}", f"--rw={self.rw}", "--thread",
            f"--bs={self.block_bytes}", f"--iodepth={self.depth}", f"--ioengine={engine}",
            f"--direct={int(self.direct)}",
            "--output-format=json", "--randrepeat=1", "--allow_file_create=0", "--fallocate=none", "--refill_buffers=0",
            f"--end_fsync={int(writes)}", f"--fsync={int(self.fsync_each)}", *extent,
        ]  # fmt: skip


Runner = Callable[[Sequence[str]], str]


def run_here(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=180)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    return done.stdout


def measure(job: Job, path: str, size_bytes: int, seconds: float, run: Runner = run_here) -> float:
    """In the job's unit: more is better."""
    return result_of(run(job.arguments(path, size_bytes, seconds)), job)


def result_of(output: str, job: Job) -> float:
    """fio's own clock of the job stops before the last fsync; the job's run time does not."""
    start = output.index("{")  # fio may warn before it
    done: dict[str, Any] = json.loads(output[start:])["jobs"][0]
    if done["error"]:
        raise RuntimeError(f"fio job {job.name}: error {done['error']}")
    side = done["write" if "write" in job.rw else "read"]
    seconds = max(done["job_runtime"], side["runtime"], 1) / 1000
    if job.unit == "MB/s":
        return float(side["io_bytes"]) / 1e6 / float(seconds)
    return float(side["total_ios"]) / float(seconds)
