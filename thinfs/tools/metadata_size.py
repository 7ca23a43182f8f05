"""How large a metadata device a pool needs: what thin_metadata_size 0.9.0 answers, in its words.

Promises: 4 KiB for the superblock, for each thin, and for each 126 data blocks (a leaf of the mapping tree that is half
full); numbers, units and refusals of thin_metadata_size.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from thinfs.errors import InvalidArgument
from thinfs.units import METADATA_BLOCK_BYTES, SECTOR_BYTES

_MAPPINGS_PER_LEAF: Final = 126
_PREFIXES: Final = "kmgtpez"
_NAMES: Final = ("kilo", "mega", "giga", "tera", "peta", "exa", "zetta")
_BINARY_NAMES: Final = ("kibi", "mebi", "gibi", "tebi", "pebi", "ebi", "zebi")  # as it spells them


@dataclass(frozen=True, slots=True)
class Unit:
    letter: str
    name: str
    nr_bytes: int


UNITS: Final[Mapping[str, Unit]] = {
    unit.letter: unit
    for unit in (
        Unit("b", "bytes", 1),
        Unit("s", "sectors", SECTOR_BYTES),
        *(
            Unit(c, f"{name}bytes", 1024**i)
            for i, (c, name) in enumerate(zip(_PREFIXES, _BINARY_NAMES, strict=True), 1)
        ),
        *(
            Unit(c.upper(), f"{name}bytes", 1000**i)
            for i, (c, name) in enumerate(zip(_PREFIXES, _NAMES, strict=True), 1)
        ),
    )
}


def parse_amount(text: str) -> tuple[int, str]:
    """Digits and a unit, sectors if there is none -> bytes, and the amount as it is repeated in the answer."""
    digits = text.rstrip("".join(UNITS))
    unit = UNITS.get(text[len(digits) :])
    if not digits.isdecimal() or (unit is None and digits != text):
        raise InvalidArgument("Invalid unit specifier!")
    return int(digits) * (unit.nr_bytes if unit else SECTOR_BYTES), digits + (unit.name if unit else "sectors")


def metadata_bytes(data_block_bytes: int, pool_bytes: int, max_thins: int) -> int:
    data_block_bytes, pool_bytes = (nr // SECTOR_BYTES * SECTOR_BYTES for nr in (data_block_bytes, pool_bytes))
    if data_block_bytes <= 0:
        raise InvalidArgument("block size required!")
    if pool_bytes <= 0:
        raise InvalidArgument("pool size required!")
    if max_thins <= 0:
        raise InvalidArgument("max thins required!")
    if data_block_bytes & (data_block_bytes - 1):
        raise InvalidArgument("block size must be 2^^N")
    if pool_bytes <= data_block_bytes:
        raise InvalidArgument("pool size must be larger than block size")
    return METADATA_BLOCK_BYTES * (1 + max_thins + pool_bytes // data_block_bytes // _MAPPINGS_PER_LEAF)


def format_amount(nr_bytes: int, unit: Unit) -> str:
    """A whole number where it is one; what two decimals would not show, with an exponent."""
    if nr_bytes % unit.nr_bytes == 0:
        return str(nr_bytes // unit.nr_bytes)
    value = nr_bytes / unit.nr_bytes
    fraction = value % 1
    if fraction < sys.float_info.epsilon:
        return f"{value:.0f}"
    return f"{value:.2e}" if fraction < 0.01 else f"{value:.2f}"
