"""Bugs that the judge must see, each with the variant that shows it; test_planted_bugs plants them.

Five of the first six passed the conformance suite or the differential campaigns of their day.
"""

from dataclasses import dataclass
from typing import Final

from tests.planting import Plant


@dataclass(frozen=True, slots=True)
class Shown:
    plant: Plant
    variant: str  # finds it within the first seeds, by the model or thin_check, without a kernel


PLANTS: Final = (
    Shown(
        Plant(
            "a discard's ragged end unmaps the block it only touches",
            r"end = \(bio\.offset \+ bio\.length\) // block_bytes",
            r"end = -(-(bio.offset + bio.length) // block_bytes)",
        ),
        "wrap",
    ),
    Shown(
        Plant(
            "a snapshot's creation time is one too low",
            r"snap = self\._new_device\(dev_id\)$",
            r"snap = self._new_device(dev_id); snap.creation_time -= 1",
        ),
        "plain",
    ),
    Shown(
        Plant(
            "a snapshot shares with its origin since one snapshot too early",
            r"snap\.snapshotted_time = self\.([\w.]+)$",
            r"snap.snapshotted_time = self.\1 - 1",
        ),
        "plain",
    ),
    Shown(
        Plant(
            "EIO for ENOSPC when the wait for space ends",
            r"(_report_mode\(\)\n\s+self\.(?:_pending\.)?_?fail_waiting)\(NoSpace\)",
            r"\1(IOFailed)",
        ),
        "waiting",
    ),
    Shown(
        Plant(
            "the metadata snapshot's own block is kept at its release",
            r"objects\.tm\.dec\(held_root\)$",
            r"pass",
        ),
        "plain",
    ),
    Shown(
        Plant("low water: below the mark only", r"free <= (self\.[\w.]+low_water_blocks)", r"free < \1"),
        "low-water",
    ),
    Shown(
        Plant(
            "find_mapped_range ignores that the shared flag changes",
            r"\n\s+or \(snapshotted > mapping & TIME_MASK\) != shared",
            "",
        ),
        "wrap",
    ),
)
