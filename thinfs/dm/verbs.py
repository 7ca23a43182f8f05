"""The verbs of the seam in one table: their arguments, in order, with types and defaults, and what each answers.

What only passes calls on is made from it: the control protocol's arguments and answers (thinfs.server), the calls
over a kernel's device-mapper and the operations of the differential tests (kernel_backend). Who does the work
writes its verbs out, and a test holds every signature, that of thinfs.dm.backend.Backend first, against this table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias

from thinfs.dm.backend import DeviceInfo, TargetVersion

Json: TypeAlias = Any

REQUIRED: Final = ...


@dataclass(frozen=True, slots=True)
class Parameter:
    """One with a default is given by keyword; a nullable one may be None, and left out where names are sent. A number
    is from 0 to `highest`."""

    name: str
    kind: type
    default: Any = REQUIRED
    nullable: bool = False
    highest: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Answer:
    """How the value of a call goes through JSON."""

    to_json: Callable[[Any], Json] = lambda value: value
    from_json: Callable[[Json], Any] = lambda value: value


NOTHING: Final = Answer(from_json=lambda _: None)
TEXT: Final = Answer(from_json=str)
INFO: Final = Answer(asdict, lambda fields: DeviceInfo(**fields))
INFOS: Final = Answer(
    lambda infos: [asdict(info) for info in infos], lambda rows: [DeviceInfo(**fields) for fields in rows]
)
NUMBERS: Final = Answer(
    lambda numbers: [list(number) for number in numbers], lambda rows: [(major, minor) for major, minor in rows]
)
TARGETS: Final = Answer(
    lambda targets: [[target.name, *target.version] for target in targets],
    lambda rows: [TargetVersion(name, (major, minor, patch)) for name, major, minor, patch in rows],
)
DEVICE: Final = Answer()  # an open device has no JSON: each side of a call gives it a handle of its own


@dataclass(frozen=True, slots=True)
class Verb:
    answer: Answer
    parameters: tuple[Parameter, ...]

    def by_name(self, values: Sequence[Any]) -> dict[str, Any]:
        """Arguments given in the table's order; those left out at the end have their defaults."""
        if len(values) > len(self.parameters):
            raise TypeError(f"{len(values)} arguments, at most {len(self.parameters)}: {values!r}")
        return {parameter.name: value for parameter, value in zip(self.parameters, values, strict=False)}

    def in_order(self, arguments: Mapping[str, Any]) -> list[Any]:
        """All arguments, given by name, in the table's order."""
        return [arguments.get(parameter.name, parameter.default) for parameter in self.parameters]


def _verb(answer: Answer, *parameters: Parameter) -> Verb:
    return Verb(answer, parameters)


_NAME: Final = Parameter("name", str)
_READ_ONLY: Final = Parameter("read_only", bool, False)
_INACTIVE: Final = Parameter("inactive", bool, False)

VERBS: Final[Mapping[str, Verb]] = {
    "create": _verb(
        INFO,
        _NAME,
        Parameter("table", str, nullable=True),
        Parameter("uuid", str, ""),
        _READ_ONLY,
        Parameter("minor", int, None, nullable=True),
    ),
    "load": _verb(NOTHING, _NAME, Parameter("table", str), _READ_ONLY),
    "clear": _verb(NOTHING, _NAME),
    "suspend": _verb(NOTHING, _NAME, Parameter("noflush", bool, False), Parameter("lockfs", bool, True)),
    "resume": _verb(NOTHING, _NAME),
    "remove": _verb(NOTHING, _NAME, Parameter("deferred", bool, False)),
    "rename": _verb(NOTHING, _NAME, Parameter("new_name", str)),
    "set_uuid": _verb(NOTHING, _NAME, Parameter("uuid", str)),
    "message": _verb(TEXT, _NAME, Parameter("message", str), Parameter("sector", int, 0, highest=(1 << 64) - 1)),
    "status": _verb(TEXT, _NAME, Parameter("noflush", bool, False), _INACTIVE),
    "table": _verb(TEXT, _NAME, _INACTIVE),
    "info": _verb(INFO, _NAME, _INACTIVE),
    "wait": _verb(INFO, _NAME, Parameter("event_nr", int)),
    "deps": _verb(NUMBERS, _NAME),
    "list": _verb(INFOS),
    "targets": _verb(TARGETS),
    "open": _verb(DEVICE, _NAME),
}
