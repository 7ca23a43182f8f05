"""What happens to a history's disks: grown, made to fail, mended; one pseudo-operation, done by either side in its way.

`("disk", DISK, STATE)`: DISK is `meta` or `data`, STATE a size in bytes, `fail` (reads and writes are EIO),
`fail-writes` or `work`. Its outcome is (0, "") on both sides: a kernel's disk is a linear device whose table is
replaced, the engine's is a file with a marker beside it (tests/conformance/faults).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kernel_backend.batch import Operation, Outcome

from ..conformance.faults import FAIL_READS, FAIL_WRITES
from .variants import Variant

DISK: Final = "disk"
_MARKS: Final = {"fail": (FAIL_READS, FAIL_WRITES), "fail-writes": (FAIL_WRITES,), "work": ()}


def breaks(operations: Sequence[Operation]) -> bool:
    """Is some disk of the history ever made to fail?"""
    return any(operation[0] == DISK and isinstance(operation[2], str) for operation in operations)


def change_file(path: str, state: str | int) -> None:
    """The engine's side."""
    if isinstance(state, int):
        os.truncate(path, state)
        return
    for mark in (FAIL_READS, FAIL_WRITES):
        Path(path + mark).unlink(missing_ok=True)
    for mark in _MARKS[state]:
        Path(path + mark).touch()


class LinearDisks:
    """The kernel's side: tables of the linear devices that a history's disks are.

    A disk that fails is a flakey one, which fails flushes as well; the error target lets those succeed (seen).
    """

    def __init__(self, variant: Variant, raw: dict[str, str]) -> None:
        """`raw`: of each disk, what lies below it."""
        self._raw = raw
        self._bytes = {"meta": variant.metadata_bytes, "data": variant.data_bytes}

    def table(self, disk: str, state: str | int = "work") -> str:
        if isinstance(state, int):
            self._bytes[disk] = state
            state = "work"
        target = {"fail": "flakey {} 0 0 1", "fail-writes": "flakey {} 0 0 1 1 error_writes", "work": "linear {} 0"}[
            state
        ]
        return f"0 {self._bytes[disk] // 512} {target.format(self._raw[disk])}"

    def expand(self, operations: Sequence[Operation]) -> tuple[list[Operation], list[int]]:
        """Operations that a guest knows, and how many of them each of the history's has become."""
        expanded: list[Operation] = []
        counts = []
        for operation in operations:
            if operation[0] == DISK:
                name, state = f"disk-{operation[1]}", operation[2]
                assert isinstance(state, str | int)
                pieces: list[Operation] = [
                    ("load", name, self.table(str(operation[1]), state)),
                    ("suspend", name, True, False),
                    ("resume", name),
                ]
            else:
                pieces = [operation]
            expanded += pieces
            counts.append(len(pieces))
        return expanded, counts


def collapse(outcomes: Sequence[Outcome], counts: Sequence[int]) -> list[Outcome]:
    """One outcome for each of the history's operations again; a disk's is the first errno among its pieces."""
    collapsed, at = [], 0
    for count in counts:
        pieces = outcomes[at : at + count]
        collapsed.append(next((piece for piece in pieces if piece[0]), pieces[-1]))
        at += count
    return collapsed
