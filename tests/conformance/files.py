"""Disks that are files of this machine, for the userspace backend in process and behind the server."""

import os
import subprocess
from pathlib import Path

from .faults import FAIL_READS, FAIL_WRITES


class FileDisk:
    """A sparse file; faults by its markers (see faults)."""

    passes_discards = True

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.word = str(path)
        with open(self.word, "xb") as file:
            file.truncate(size_bytes)

    async def resize(self, size_bytes: int) -> None:
        os.truncate(self.word, size_bytes)

    async def fail(self, *, reads: bool = True, writes: bool = True) -> None:
        for suffix, wanted in ((FAIL_READS, reads), (FAIL_WRITES, writes)):
            if wanted:
                Path(self.word + suffix).touch()

    async def work(self) -> None:
        for suffix in (FAIL_READS, FAIL_WRITES):
            Path(self.word + suffix).unlink(missing_ok=True)

    async def read(self, offset: int, length: int) -> bytes:
        with open(self.word, "rb") as file:
            return os.pread(file.fileno(), length, offset)

    async def write(self, offset: int, data: bytes) -> None:
        with open(self.word, "r+b") as file:
            os.pwrite(file.fileno(), data, offset)

    async def thin_check(self, *options: str) -> tuple[int, str]:
        return thin_check(self.word, *options)


def thin_check(path: str, *options: str) -> tuple[int, str]:
    search = f"/usr/sbin:/sbin:{os.environ.get('PATH', '/usr/bin:/bin')}"
    done = subprocess.run(
        ["thin_check", *options, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PATH": search},
    )
    return done.returncode, done.stdout
