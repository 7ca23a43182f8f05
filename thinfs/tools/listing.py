"""A row for each thin of a pool, in the fields and the layout of thin_ls 0.9.0.

Promises: all its fields; sizes for people as it prints them (up to 8192 of a unit; rounded below 1024, else cut).
The mappings are walked only where an exclusive or shared field is asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from thinfs.errors import InvalidArgument
from thinfs.ondisk.thin import DeviceDetails
from thinfs.tools.usage import Usage, usage_of_all
from thinfs.tools.walk import PoolTrees
from thinfs.units import sectors_to_bytes

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_HIGHEST: Final = 8192
DEFAULT_FIELDS: Final = ("DEV", "MAPPED", "CREATE_TIME", "SNAP_TIME")


@dataclass(frozen=True, slots=True)
class _Row:
    dev_id: int
    details: DeviceDetails
    usage: Usage
    block_sectors: int


def _size_fields(name: str, blocks: Callable[[_Row], int]) -> Mapping[str, Callable[[_Row], str]]:
    return {
        f"{name}_BLOCKS": lambda row: str(blocks(row)),
        f"{name}_SECTORS": lambda row: str(blocks(row) * row.block_sectors),
        f"{name}_BYTES": lambda row: str(sectors_to_bytes(blocks(row) * row.block_sectors)),
        name: lambda row: size_for_people(sectors_to_bytes(blocks(row) * row.block_sectors)),
    }


FIELDS: Final[Mapping[str, Callable[[_Row], str]]] = {
    "DEV": lambda row: str(row.dev_id),
    **_size_fields("MAPPED", lambda row: row.usage.mapped_blocks),
    **_size_fields("EXCLUSIVE", lambda row: row.usage.exclusive_blocks),
    **_size_fields("SHARED", lambda row: row.usage.shared_blocks),
    "TRANSACTION": lambda row: str(row.details.transaction_id),
    "CREATE_TIME": lambda row: str(row.details.creation_time),
    "SNAP_TIME": lambda row: str(row.details.snapshotted_time),
}


def size_for_people(nr_bytes: int) -> str:
    if nr_bytes == 0:
        return "0"
    unit = 0
    while nr_bytes >> 10 * unit > _HIGHEST and unit < len(_UNITS) - 1:
        unit += 1
    value, rest = divmod(nr_bytes, 1 << 10 * unit)
    return f"{value + (value < 1024 and 2 * rest >= 1 << 10 * unit)}{_UNITS[unit]}"


def listing_lines(trees: PoolTrees, fields: Sequence[str], *, headers: bool = True) -> Iterator[str]:
    """Columns as wide as their widest, right-aligned, each with a blank after it."""
    unknown = [field for field in fields if field not in FIELDS]
    if unknown:
        raise InvalidArgument(f"unknown field {unknown[0]!r}; there are {', '.join(FIELDS)}")
    details = trees.details()
    if any(field.startswith(("EXCLUSIVE", "SHARED")) for field in fields):
        usage = usage_of_all(trees)
    else:
        usage = {dev_id: Usage(one.mapped_blocks, 0) for dev_id, one in details.items()}
    block_sectors = trees.superblock.data_block_size
    table = [list(fields)] if headers else []
    for dev_id, one in details.items():
        row = _Row(dev_id, one, usage[dev_id], block_sectors)
        table.append([FIELDS[field](row) for field in fields])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        yield "".join(f"{cell.rjust(width)} " for cell, width in zip(line, widths, strict=True)) + "\n"
