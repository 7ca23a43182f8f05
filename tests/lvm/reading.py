"""All of some disks, read as the commands read them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from thinfs.errors import ThinfsError
from thinfs.lvm.opening import open_volumes


@dataclass
class Read:
    contents: dict[str, bytes]
    refused: dict[str, str]  # the line
    problems: tuple[str, ...]
    doubts: list[str]  # of its pools and groups: why nothing may be written


def read_all(paths: Sequence[str], most_bytes: int = 4 << 20) -> Read:
    """Of each volume the first `most_bytes`: a thin may be of any size."""
    contents, refused, doubts = {}, {}, []
    with open_volumes(paths) as (volumes, _):
        for volume in volumes:
            try:
                if volume.lv.pool is not None:
                    doubts += volumes.pool_of(volume).doubts
                    continue
                readable = volumes.open_verified(volume)
                if volume.lv.visible:
                    contents[volume.label] = readable.read(0, min(readable.size_bytes, most_bytes))
            except ThinfsError as error:
                assert "\n" not in str(error)
                refused[volume.label] = str(error)
        problems = volumes.disks.problems
        doubts += [line for group in volumes.disks.groups for line in group.doubts]
    assert not [line for line in problems if "\n" in line]
    return Read(contents, refused, problems, doubts)


def sums_of(paths: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each visible volume; all of them must be sound."""
    found = {}
    with open_volumes(paths) as (volumes, _):
        assert volumes.disks.problems == ()
        for volume in volumes:
            if volume.lv.pool is not None:
                assert volumes.pool_of(volume).doubts == []
            elif volume.lv.visible:
                readable, digest = volumes.open_verified(volume), hashlib.sha256()
                for offset in range(0, readable.size_bytes, 1 << 20):
                    digest.update(readable.read(offset, min(1 << 20, readable.size_bytes - offset)))
                found[volume.label] = digest.hexdigest()
    return found
