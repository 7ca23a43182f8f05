"""What dmsetup prints about devices: the long form, the columns of `info -c`, the tree of `ls --tree`.

Pure functions from DeviceInfo to text, word for word as dmsetup 1.02.185 (docs/reference/dmsetup.md).
Columns are aligned with headings; with --noheadings or --separator they are joined by the separator.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from thinfs.dm.backend import DeviceInfo
from thinfs.errors import InvalidArgument

DeviceNumber = tuple[int, int]


def long_form(info: DeviceInfo) -> str:
    """One device of `dmsetup info`, with the blank line that ends it."""
    state = "SUSPENDED" if info.suspended else "ACTIVE"
    if info.read_only:
        state += " (READ-ONLY)"
    if info.deferred_remove:
        state += " (DEFERRED REMOVE)"
    tables = [word for word, there in (("LIVE", info.live_table), ("INACTIVE", info.inactive_table)) if there]
    lines = [
        f"Name:              {info.name}",
        f"State:             {state}",
        "Read Ahead:        256",
        f"Tables present:    {' & '.join(tables) or 'None'}",
        f"Open count:        {info.open_count}",
        f"Event number:      {info.event_nr}",
        f"Major, minor:      {info.major}, {info.minor}",
        f"Number of targets: {info.target_count}",
    ]
    if info.uuid:
        lines.append(f"UUID: {info.uuid}")
    return "\n".join(lines) + "\n\n"


def attributes(info: DeviceInfo) -> str:
    """L live table, I inactive table, s suspended, r read-only or w."""
    return (
        ("L" if info.live_table else "-")
        + ("I" if info.inactive_table else "-")
        + ("s" if info.suspended else "-")
        + ("r" if info.read_only else "w")
    )


def _tables(info: DeviceInfo) -> str:
    if info.live_table and info.inactive_table:
        return "Both"
    return "Live" if info.live_table else "Inactive" if info.inactive_table else "None"


@dataclass(frozen=True, slots=True)
class Column:
    heading: str
    width: int
    right: bool
    text: Callable[[DeviceInfo], str]


COLUMNS: Mapping[str, Column] = {
    "name": Column("Name", 16, False, lambda info: info.name),
    "mangled_name": Column("MangledName", 16, False, lambda info: info.name),
    "unmangled_name": Column("UnmangledName", 16, False, lambda info: info.name),
    "uuid": Column("UUID", 32, False, lambda info: info.uuid),
    "mangled_uuid": Column("MangledUUID", 32, False, lambda info: info.uuid),
    "unmangled_uuid": Column("UnmangledUUID", 32, False, lambda info: info.uuid),
    "read_ahead": Column("RAhead", 6, True, lambda info: "256"),
    "blkdevname": Column("BlkDevName", 16, False, lambda info: f"dm-{info.minor}"),
    "attr": Column("Stat", 4, False, attributes),
    "tables_loaded": Column("Tables", 6, False, _tables),
    "suspended": Column("Suspended", 9, False, lambda info: "Suspended" if info.suspended else "Active"),
    "readonly": Column("Read-only", 9, False, lambda info: "Read-only" if info.read_only else "Writeable"),
    "deferred_remove": Column("DeferredRemove", 14, False, lambda info: "Deferred" if info.deferred_remove else ""),
    "devno": Column("DevNo", 5, False, lambda info: f"{info.major}:{info.minor}"),
    "major": Column("Maj", 3, True, lambda info: str(info.major)),
    "minor": Column("Min", 3, True, lambda info: str(info.minor)),
    "open": Column("Open", 4, True, lambda info: str(info.open_count)),
    "segments": Column("Targ", 4, True, lambda info: str(info.target_count)),
    "events": Column("Event", 6, True, lambda info: str(info.event_nr)),
}
DEFAULT_COLUMNS = "name,major,minor,attr,open,segments,events,uuid"


def column_names(options: str | None) -> list[str]:
    """The columns asked for with -o; `+a,b` adds to the default ones."""
    if options is None:
        options = DEFAULT_COLUMNS
    elif options.startswith("+"):
        options = f"{DEFAULT_COLUMNS},{options[1:]}"
    names = [name for name in options.split(",") if name]
    for name in names:
        if name not in COLUMNS:
            raise InvalidArgument(f"Unrecognised field: {name}")
    return names


def columns(infos: Sequence[DeviceInfo], names: Sequence[str], *, headings: bool, separator: str | None) -> str:
    chosen = [COLUMNS[name] for name in names]
    rows = [[column.text(info) for column in chosen] for info in infos]
    if separator is not None or not headings:
        heads = [[column.heading for column in chosen]] if headings else []
        joint = ":" if separator is None else separator
        return "".join(joint.join(row) + "\n" for row in heads + rows)
    widths = [
        max([column.width, len(column.heading), *(len(row[i]) for row in rows)]) for i, column in enumerate(chosen)
    ]
    lines = [[column.heading.ljust(width) for column, width in zip(chosen, widths, strict=True)]]
    lines += [
        [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, column, width in zip(row, chosen, widths, strict=True)
        ]
        for row in rows
    ]
    return "".join(" ".join(line) + "\n" for line in lines)


def dependencies(numbers: Sequence[DeviceNumber], label: Callable[[DeviceNumber], str] | None) -> str:
    """`1 dependencies  : (254, 0)`; with a label for each device, its name instead of the number."""
    texts = [f"{major}, {minor}" if label is None else label((major, minor)) for major, minor in numbers]
    return f"{len(texts)} dependencies\t: " + " ".join(f"({text})" for text in texts) + "\n"


def tree(infos: Sequence[DeviceInfo], uses: Mapping[DeviceNumber, Sequence[DeviceNumber]]) -> str:
    """Every device that no other one uses, and below each what it stands on."""
    names = {(info.major, info.minor): info.name for info in infos}
    used = {number for numbers in uses.values() for number in numbers}

    def label(number: DeviceNumber) -> str:
        return f"{names.get(number, '')} ({number[0]}:{number[1]})\n"

    def below(number: DeviceNumber, indent: str) -> Iterator[str]:
        children = sorted(uses.get(number, ()))
        for position, child in enumerate(children, 1):
            last = position == len(children)
            yield f"{indent} {'`' if last else '|'}-{label(child)}"
            yield from below(child, indent + ("   " if last else " | "))

    lines: list[str] = []
    for info in infos:
        number = (info.major, info.minor)
        if number not in used:
            lines.append(label(number))
            lines += below(number, "")
    return "".join(lines)
