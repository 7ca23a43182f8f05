"""Loop devices for tests: attached over sparse files, detached whatever happens."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from thinfs.blockdevs import loop
from thinfs.blockdevs.loop import LoopDevice


def why_none() -> str | None:
    """Why this machine has no loop devices for us, or None."""
    if os.geteuid() != 0:
        return "loop devices take root"
    try:
        os.close(os.open(loop.CONTROL, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{loop.CONTROL}: {error.strerror}"
    return None


class Loops:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.attached: list[LoopDevice] = []

    def make(self, name: str, size_bytes: int, *, read_only: bool = False) -> LoopDevice:
        path = self._directory / name
        path.touch()
        os.truncate(path, size_bytes)
        device = loop.attach(str(path), read_only=read_only)
        self.attached.append(device)
        return device

    def detach_all(self) -> None:
        for device in self.attached:
            if (loop.backing_path(device) or "").startswith(f"{self._directory}/"):
                loop.abandon(device)


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[Loops]:
    reason = why_none()
    if reason is not None:
        pytest.skip(reason)
    made = Loops(tmp_path)
    try:
        yield made
    finally:
        made.detach_all()
