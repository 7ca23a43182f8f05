"""/proc/PID/mountinfo (proc(5)): what a process sees mounted, without touching a mount point.

Promises: reads that one file, so no stuck file system keeps it. Paths come as they are, with the octal escapes undone.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of it."""

    directory: str
    major: int
    minor: int
    fs_type: str
    source: str

    @property
    def device(self) -> str:
        return f"{self.major}:{self.minor}"


def _unescaped(word: str) -> str:
    return _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), word)


def mounts(process: str = "self") -> Iterator[MountEntry]:
    """In the order in which they were mounted; OSError where there is no such process."""
    with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            parts = fields.split(" ")
            major, _, minor = parts[2].partition(":")
            directory = _unescaped(parts[4])
            fs_type, source, *_ = rest.split(" ")
            yield MountEntry(directory, int(major), int(minor), fs_type, _unescaped(source))


def mount_of(path: str) -> tuple[int, int]:
    """(major, minor) of the file system that a resolved path is on, without touching the path."""
    found, length = (0, 0), -1
    for entry in mounts():
        below = path == entry.directory or path.startswith(entry.directory.rstrip("/") + "/")
        if below and len(entry.directory) >= length:
            found, length = (entry.major, entry.minor), len(entry.directory)
    return found


def mounted_on(directory: str) -> MountEntry | None:
    """The uppermost mount on a resolved path."""
    found = None
    for entry in mounts():
        if entry.directory == directory:
            found = entry
    return found
