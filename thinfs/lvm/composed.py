"""A volume put together from extents: linear and striped segments, on physical volumes or within other volumes.

Promises: a segment lies within what it stands on, checked once when it is made; a read of any range is exact.
Source: docs/reference/lvm.md, 6.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from thinfs.errors import BadMetadata
from thinfs.lvm.reading import Readable, check_range


@dataclass(frozen=True, slots=True)
class Column:
    below: Readable
    offset: int


@dataclass(frozen=True, slots=True)
class SegmentMap:
    """Bytes `begin..end` of the volume, in units of `stripe_bytes` over the columns in turn."""

    begin: int
    end: int
    columns: Sequence[Column]
    stripe_bytes: int  # of no meaning with one column

    def pieces(self, begin: int, end: int) -> Iterator[tuple[int, int, Readable, int]]:
        """(first, last, what it is on, offset there) of a range of the volume within this segment."""
        if len(self.columns) == 1:
            column = self.columns[0]
            yield begin, end, column.below, column.offset + begin - self.begin
            return
        while begin < end:
            unit, within = divmod(begin - self.begin, self.stripe_bytes)
            row, number = divmod(unit, len(self.columns))
            last = min(end, begin + self.stripe_bytes - within)
            column = self.columns[number]
            yield begin, last, column.below, column.offset + row * self.stripe_bytes + within
            begin = last


class ComposedVolume:
    def __init__(self, label: str, segments: Sequence[SegmentMap]) -> None:
        """The segments follow each other from 0 on."""
        self.label = label
        self.size_bytes = segments[-1].end
        self._segments = segments
        self._begins = [segment.begin for segment in segments]
        for segment in segments:
            nr, length = len(segment.columns), segment.end - segment.begin
            if nr > 1 and length // nr % segment.stripe_bytes:
                raise BadMetadata(
                    f"{label}: columns of {length // nr} bytes are not of whole stripes, {segment.stripe_bytes}"
                )
            for column in segment.columns:
                if column.offset + length // nr > column.below.size_bytes:
                    raise BadMetadata(f"{label}: runs past the end of {column.below.label}")

    def pieces(self, begin: int, end: int) -> Iterator[tuple[int, int, Readable, int]]:
        """As those of a segment."""
        i = bisect_right(self._begins, begin) - 1
        while begin < end:
            segment = self._segments[i]
            last = min(end, segment.end)
            yield from segment.pieces(begin, last)
            begin, i = last, i + 1

    def read(self, offset: int, length: int) -> bytes:
        check_range(self, offset, length)
        parts = [below.read(at, last - first) for first, last, below, at in self.pieces(offset, offset + length)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def data_ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        for first, last, below, at in self.pieces(begin, end):
            for low, high in below.data_ranges(at, at + last - first):
                yield first + low - at, first + high - at
