"""Device-mapper tables: the grammar of a table, and the arguments of the thin-pool and thin targets.

    table       = line *( LF line )
    line        = start SP length SP target *( SP word )         sectors; a backslash quotes the next character
    thin-pool   = metadata-dev SP data-dev SP block-size SP low-water [ SP count *( SP feature ) ]
    thin        = pool-dev SP dev-id [ SP external-origin-dev ]

Parses and formats; opens nothing. Source: docs/reference/behaviour.md, 1 and 2, order of checks included.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from thinfs.errors import InvalidArgument
from thinfs.units import (
    DATA_BLOCK_MAX_SECTORS,
    DATA_BLOCK_MIN_SECTORS,
    DATA_BLOCK_MULTIPLE_SECTORS,
    MAX_DEV_ID,
)

MAX_U64: Final = (1 << 64) - 1
_MAX_SECTORS: Final = (1 << 63) - 1
_DECIMAL: Final = re.compile(r"\+?[0-9]+")  # what the kernel's number parser takes: no 0x, no minus, no tail
_WORD: Final = re.compile(r"(?:\\.|[^\s\\])+|\\$", re.DOTALL)
_QUOTED: Final = re.compile(r"\\(.)", re.DOTALL)


def parse_decimal(text: str, *, maximum: int = MAX_U64) -> int | None:
    """An unsigned decimal as the kernel reads it (leading `+` and zeros allowed), or None."""
    if not _DECIMAL.fullmatch(text):
        return None
    value = int(text) if len(text) < 64 else MAX_U64 + 1  # a longer number is out of range whatever it says
    return value if value <= maximum else None


def split_words(text: str) -> list[str]:
    """Words between white space; a backslash quotes the character after it."""
    return [_QUOTED.sub(r"\1", word) for word in _WORD.findall(text)]


def quote_word(word: str) -> str:
    """The word as `split_words` reads it back."""
    return re.sub(r"([\s\\])", r"\\\1", word)


@dataclass(frozen=True, slots=True)
class TargetLine:
    """One line of a table: `length_sectors` from `start_sectors` on are served by `target`."""

    start_sectors: int
    length_sectors: int
    target: str
    params: tuple[str, ...]

    def __str__(self) -> str:
        words = " ".join(map(quote_word, self.params))
        return f"{self.start_sectors} {self.length_sectors} {self.target} {words}"


def parse_table(text: str) -> tuple[TargetLine, ...]:
    """The lines of a table, which must follow each other from sector 0 without a gap."""
    lines: list[TargetLine] = []
    end = 0
    for number, row in enumerate((row for row in text.split("\n") if row.strip()), 1):
        words = split_words(row)
        if len(words) < 3:
            raise InvalidArgument(f"table line {number}: {row.strip()!r}: expected start, length and target")
        start = parse_decimal(words[0], maximum=_MAX_SECTORS)
        length = parse_decimal(words[1], maximum=_MAX_SECTORS)
        if start is None:
            raise InvalidArgument(f"table line {number}: {words[0]}: not a start sector")
        if length is None:
            raise InvalidArgument(f"table line {number}: {words[1]}: not a length in sectors")
        if start != end:
            raise InvalidArgument(f"{words[2]}: Gap in table: line {number} starts at {start}, not {end}")
        if length == 0:
            raise InvalidArgument(f"{words[2]}: zero-length target in table line {number}")
        end = start + length
        lines.append(TargetLine(start, length, words[2], tuple(words[3:])))
    if not lines:
        raise InvalidArgument("the table is empty")
    return tuple(lines)


class Feature(StrEnum):
    """Pool features in the order in which the kernel prints them."""

    SKIP_BLOCK_ZEROING = "skip_block_zeroing"
    IGNORE_DISCARD = "ignore_discard"
    NO_DISCARD_PASSDOWN = "no_discard_passdown"
    READ_ONLY = "read_only"
    ERROR_IF_NO_SPACE = "error_if_no_space"


MAX_FEATURE_ARGUMENTS: Final = 4  # the kernel refuses all five at once (seen)
GUARD: Final = "guard:"  # ours, with a number of data blocks: a kernel has no such feature


@dataclass(frozen=True, slots=True)
class PoolArguments:
    """The words of a thin-pool line as far as they can be judged before the devices are opened."""

    metadata_dev: str
    data_dev: str
    block_size_text: str
    low_water_text: str
    features: frozenset[Feature]
    guard_blocks: int = 0  # at this many free data blocks no new thin block gets one

    @classmethod
    def parse(cls, params: Sequence[str]) -> "PoolArguments":
        if len(params) < 4:
            raise InvalidArgument(f"thin-pool: Invalid argument count: {len(params)}, expected 4 or more")
        if params[0] == params[1]:
            raise InvalidArgument(f"thin-pool: Error setting metadata or data device: both are {params[0]}")
        return cls(params[0], params[1], params[2], params[3], *_parse_features(params[4:]))

    def block_size_sectors(self) -> int:
        size = parse_decimal(self.block_size_text)
        if (
            size is None
            or not DATA_BLOCK_MIN_SECTORS <= size <= DATA_BLOCK_MAX_SECTORS
            or size % DATA_BLOCK_MULTIPLE_SECTORS
        ):
            raise InvalidArgument(
                f"thin-pool: Invalid block size: {self.block_size_text}, expected a multiple of "
                f"{DATA_BLOCK_MULTIPLE_SECTORS} sectors from {DATA_BLOCK_MIN_SECTORS} to {DATA_BLOCK_MAX_SECTORS}"
            )
        return size

    def low_water_blocks(self) -> int:
        blocks = parse_decimal(self.low_water_text)
        if blocks is None:
            raise InvalidArgument(f"thin-pool: Invalid low water mark: {self.low_water_text}")
        return blocks


def _parse_features(words: Sequence[str]) -> tuple[frozenset[Feature], int]:
    """The features, and the number of blocks of the guard."""
    if not words:
        return frozenset(), 0
    count, guard = parse_decimal(words[0]), 0
    most = MAX_FEATURE_ARGUMENTS + any(word.startswith(GUARD) for word in words)
    if count is None or count > most or count > len(words) - 1:
        raise InvalidArgument(
            f"thin-pool: Invalid number of pool feature arguments: {words[0]}, with {len(words) - 1} words after"
        )
    features = set()
    for word in words[1 : count + 1]:  # words after the counted ones are ignored, as in the kernel (seen)
        if word.startswith(GUARD):
            blocks = parse_decimal(word.removeprefix(GUARD))
            if blocks is None:
                raise InvalidArgument(f"thin-pool: {word}: not a number of data blocks")
            guard = blocks
            continue
        try:
            features.add(Feature(word.lower()))
        except ValueError:
            raise InvalidArgument(f"thin-pool: Unrecognised pool feature requested: {word}") from None
    return frozenset(features), guard


def format_pool_params(
    metadata_label: str,
    data_label: str,
    block_size_sectors: int,
    low_water_blocks: int,
    features: frozenset[Feature],
    guard_blocks: int = 0,
) -> str:
    """The arguments as DM_TABLE_STATUS prints them, trailing space included."""
    words = [
        quote_word(metadata_label),
        quote_word(data_label),
        str(block_size_sectors),
        str(low_water_blocks),
    ]
    words.append(str(len(features) + bool(guard_blocks)))
    words.extend(feature for feature in Feature if feature in features)
    if guard_blocks:
        words.append(f"{GUARD}{guard_blocks}")
    return " ".join(words) + " "


@dataclass(frozen=True, slots=True)
class ThinArguments:
    """The words of a thin line; the id is judged after the devices, as in the kernel."""

    pool_dev: str
    dev_id_text: str
    origin_dev: str | None

    @classmethod
    def parse(cls, params: Sequence[str]) -> "ThinArguments":
        if len(params) not in (2, 3):
            raise InvalidArgument(f"thin: Invalid argument count: {len(params)}, expected 2 or 3")
        origin = params[2] if len(params) == 3 else None
        if origin == params[0]:
            raise InvalidArgument(f"thin: Error setting origin device: it is the pool, {origin}")
        return cls(params[0], params[1], origin)

    def dev_id(self) -> int:
        dev_id = parse_decimal(self.dev_id_text, maximum=MAX_DEV_ID)
        if dev_id is None:
            raise InvalidArgument(f"thin: Invalid device id: {self.dev_id_text}, expected 0 to {MAX_DEV_ID}")
        return dev_id


def format_thin_params(pool_label: str, dev_id: int, origin_label: str | None) -> str:
    words = [pool_label, str(dev_id)]
    if origin_label is not None:
        words.append(quote_word(origin_label))
    return " ".join(words)
