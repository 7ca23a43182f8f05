"""Disks that are files of this machine, for the userspace backend in process and behind the server."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from kernel_backend import judges

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
                os.mknod(self.word + suffix)

    async def work(self) -> None:
        for suffix in (FAIL_READS, FAIL_WRITES):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.word + suffix)

    async def read(self, offset: int, length: int) -> bytes:
        with _opened(self.word, os.O_RDONLY) as file:
            return os.pread(file, length, offset)

    async def write(self, offset: int, data: bytes) -> None:
        with _opened(self.word, os.O_WRONLY) as file:
            os.pwrite(file, data, offset)

    async def thin_check(self, *options: str) -> tuple[int, str]:
        return thin_check(self.word, *options)


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def thin_check(path: str, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        [judges.tool("thin_check"), *options, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    return done.returncode, done.stdout
