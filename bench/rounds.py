"""What repeated rounds say: medians, spreads, and ratios whose rounds agree about who is faster, or do not.

Promises: a ratio is the median of the ratios within each round, never a ratio of medians from different rounds,
because the machine's speed drifts between rounds and hardly within one. Never: drops an outlier.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, TypeVar

T = TypeVar("T")

AGREED: Final = ""
DISAGREED: Final = "?"


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times faster one subject is than another: above 1 is faster, whatever the unit."""

    value: float
    agreed: bool  # all rounds are on one side of 1

    def __str__(self) -> str:
        return f"{self.value:.2f}{AGREED if self.agreed else DISAGREED}"


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: for each subject its values, one a round, in the order of the rounds."""

    section: str
    name: str
    unit: str
    higher_is_better: bool
    values: dict[str, list[float]] = field(default_factory=dict)

    def median(self, subject: str) -> float | None:
        values = self.values.get(subject)
        return median(values) if values else None

    def spread(self, subject: str) -> float | None:
        """(largest - smallest) / median, None where there is only one round."""
        values = self.values.get(subject)
        if not values or len(values) < 2 or not median(values):
            return None
        return (max(values) - min(values)) / median(values)

    def ratio(self, subject: str, peer: str) -> Ratio | None:
        return ratio(self.values.get(subject, ()), self.values.get(peer, ()), higher_is_better=self.higher_is_better)

    def as_json(self) -> dict[str, Any]:
        return {
            "section": self.section,
            "name": self.name,
            "unit": self.unit,
            "higher_is_better": self.higher_is_better,
            "values": self.values,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Row":
        return cls(**row)


def turned(subjects: Sequence[T], round_number: int) -> list[T]:
    """In another order each round, so that nobody always follows the same one."""
    turn = round_number % len(subjects)
    return [*subjects[turn:], *subjects[:turn]]


def ratio(values: Sequence[float], peer_values: Sequence[float], *, higher_is_better: bool) -> Ratio | None:
    """Per round, then the median. None where a subject was not measured in the same rounds."""
    if not values or len(values) != len(peer_values):
        return None
    if min(*values, *peer_values) <= 0:
        return None
    pairs = zip(values, peer_values, strict=True)
    ratios = [one / other if higher_is_better else other / one for one, other in pairs]
    return Ratio(median(ratios), all(one >= 1 for one in ratios) or all(one <= 1 for one in ratios))
