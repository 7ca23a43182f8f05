"""What differs between the mappings of two thins: the stretches that thin_delta of either version prints.

Promises: ascending stretches of the first thin block on; streams. Two mappings are the same if they are of one data
block: their times do not matter.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from thinfs.tools.dump_formats import Pieces
from thinfs.tools.ir import PoolHeader
from thinfs.tools.runs import MappingRun


class Kind(StrEnum):
    SAME = "same"
    DIFFERENT = "different"
    LEFT_ONLY = "left_only"
    RIGHT_ONLY = "right_only"


@dataclass(frozen=True, slots=True)
class Stretch:
    """`left_data`, `right_data`: the first data block, -1 where there is none."""

    kind: Kind
    begin: int
    length: int
    left_data: int
    right_data: int


def stretches(left: Iterable[MappingRun], right: Iterable[MappingRun]) -> Iterator[Stretch]:
    """Neighbours that continue each other, data blocks included, are one."""
    last: Stretch | None = None
    for one in _pieces(iter(left), iter(right)):
        if last is not None and _continues(last, one):
            last = Stretch(last.kind, last.begin, last.length + one.length, last.left_data, last.right_data)
        else:
            if last is not None:
                yield last
            last = one
    if last is not None:
        yield last


def _continues(one: Stretch, other: Stretch) -> bool:
    return (
        one.kind is other.kind
        and other.begin == one.begin + one.length
        and (one.left_data < 0 or other.left_data == one.left_data + one.length)
        and (one.right_data < 0 or other.right_data == one.right_data + one.length)
    )


def _pieces(left: Iterator[MappingRun], right: Iterator[MappingRun]) -> Iterator[Stretch]:
    one, other = next(left, None), next(right, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one.thin_begin < other.thin_begin):
            assert one is not None
            length = one.length if other is None else min(one.length, other.thin_begin - one.thin_begin)
            yield Stretch(Kind.LEFT_ONLY, one.thin_begin, length, one.data_begin, -1)
            one = _rest(one, length) or next(left, None)
        elif one is None or other.thin_begin < one.thin_begin:
            length = other.length if one is None else min(other.length, one.thin_begin - other.thin_begin)
            yield Stretch(Kind.RIGHT_ONLY, other.thin_begin, length, -1, other.data_begin)
            other = _rest(other, length) or next(right, None)
        else:
            length = min(one.length, other.length)
            kind = Kind.SAME if one.data_begin == other.data_begin else Kind.DIFFERENT
            yield Stretch(kind, one.thin_begin, length, one.data_begin, other.data_begin)
            one, other = _rest(one, length) or next(left, None), _rest(other, length) or next(right, None)


def _rest(run: MappingRun, begin: int) -> MappingRun | None:
    if begin == run.length:
        return None
    return MappingRun(run.thin_begin + begin, run.data_begin + begin, run.length - begin, run.time)


# -- as text


def _head(header: PoolHeader, held_root: int, left: str, right: str) -> bytes:
    held = f' metadata_snap="{held_root}"' if held_root else ""  # 1.x leaves it out
    return (
        f'<superblock uuid="" time="{header.time}" transaction="{header.trans_id}" '
        f'data_block_size="{header.data_block_size}" nr_data_blocks="{header.nr_data_blocks}"{held}>\n'
        f'  <diff left="{left}" right="{right}">\n'
    ).encode()


def simple_pieces(header: PoolHeader, held_root: int, left: str, right: str, found: Iterable[Stretch]) -> Pieces:
    yield _head(header, held_root, left, right)
    for kind, begin, length in _without_data(found):
        yield f'    <{kind} begin="{begin}" length="{length}"/>\n'.encode()
    yield b"  </diff>\n</superblock>\n"


def _without_data(found: Iterable[Stretch]) -> Iterator[tuple[Kind, int, int]]:
    """Joined wherever one kind goes on."""
    last: tuple[Kind, int, int] | None = None
    for one in found:
        if last is not None and last[0] is one.kind and one.begin == last[1] + last[2]:
            last = (one.kind, last[1], last[2] + one.length)
            continue
        if last is not None:
            yield last
        last = (one.kind, one.begin, one.length)
    if last is not None:
        yield last


def verbose_pieces(header: PoolHeader, held_root: int, left: str, right: str, found: Iterable[Stretch]) -> Pieces:
    yield _head(header, held_root, left, right)
    kind = None
    for one in found:
        if one.kind is not kind:
            if kind is not None:
                yield f"    </{kind}>\n".encode()
            kind = one.kind
            yield f"    <{kind}>\n".encode()
        if kind is Kind.DIFFERENT:
            data = f'left_data_begin="{one.left_data}" right_data_begin="{one.right_data}"'
        else:
            data = f'data_begin="{max(one.left_data, one.right_data)}"'
        yield f'      <range begin="{one.begin}" {data} length="{one.length}"/>\n'.encode()
    if kind is not None:
        yield f"    </{kind}>\n".encode()
    yield b"  </diff>\n</superblock>\n"
