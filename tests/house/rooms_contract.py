"""A contract type of import-linter's, "rooms": what the modules of each room may import, and nothing else.

A row is `room | what of ours | libraries | standard library`, blanks between names, `*` for the whole standard
library. A room is a package or a module, with all below it, `package.__init__` that module alone; a module's room is
the longest that fits. What is ours is named the same way.
Promises: also refuses a module without a row, and a row that names what is not there.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output

_EVERYTHING: Final = "*"
_ALONE: Final = ".__init__"


@dataclass(frozen=True, slots=True)
class Room:
    ours: frozenset[str]
    libraries: frozenset[str]
    standard: frozenset[str]

    def allows(self, imported: str) -> bool:
        """An import of what is not in the room itself; of libraries the graph has the top-level name only."""
        if imported in sys.stdlib_module_names:
            return imported in self.standard or _EVERYTHING in self.standard
        return imported in self.libraries or any(one in self.ours for one in _upwards(imported))


def _upwards(module: str) -> Iterator[str]:
    """The module and the packages it is in, the longest name first."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def _room_of(module: str, rooms: Mapping[str, Room]) -> str | None:
    alone = module + _ALONE
    return alone if alone in rooms else next((one for one in _upwards(module) if one in rooms), None)


def parse_rows(rows: Sequence[str]) -> dict[str, Room]:
    parsed = {}
    for row in rows:
        columns = [frozenset(column.split()) for column in row.split("|")]
        if len(columns) != 4 or len(columns[0]) != 1:
            raise fields.ValidationError(f"not `room | ours | libraries | standard library`: {row!r}")
        (name,) = columns[0]
        parsed[name] = Room(*columns[1:])
    return parsed


def violations(graph: ImportGraph, rooms: Mapping[str, Room]) -> Iterator[str]:
    roots = {name.partition(".")[0] for name in rooms}
    named = {room.removesuffix(_ALONE) for room in rooms}.union(*(room.ours for room in rooms.values()))
    yield from (f"{name}: in a row, but there is no such module" for name in sorted(named - graph.modules))
    for module in sorted(graph.modules):
        if module.partition(".")[0] not in roots:
            continue  # a library
        name = _room_of(module, rooms)
        imports = sorted(graph.find_modules_directly_imported_by(module))
        if name is None and (imports or module not in roots):
            yield f"{module}: no row in pyproject.toml says what it may import"
            continue
        for imported in imports:
            home = _room_of(imported, rooms)
            if name is not None and home != name and not rooms[name].allows(imported):
                yield f"{module} imports {imported}"


class RoomsContract(Contract):
    type_name = "rooms"

    rooms = fields.ListField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        found = list(violations(graph, parse_rows(cast("list[str]", self.rooms))))
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["found"]:
            output.print_error(f"- {line}", bold=False)
