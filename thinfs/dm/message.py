"""The messages a thin-pool target takes: one frozen record each, parsed from their words and printed back.

    create_thin ID | create_snap ID ORIGIN | delete ID | set_transaction_id CURRENT NEW
    reserve_metadata_snap | release_metadata_snap              names in any case, white space collapses

Judges words and numbers only; what the pool thinks of them is the pool's. Source: docs/reference/behaviour.md, 3.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import ClassVar, Final, TypeAlias

from thinfs.dm.table import MAX_U64, parse_decimal, split_words
from thinfs.errors import InvalidArgument
from thinfs.units import MAX_DEV_ID


class _Text:
    __slots__ = ()
    NAME: ClassVar[str]

    def __str__(self) -> str:
        return " ".join([self.NAME, *map(str, astuple(self))])  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class CreateThin(_Text):
    NAME: ClassVar[str] = "create_thin"
    dev_id: int


@dataclass(frozen=True, slots=True)
class CreateSnap(_Text):
    NAME: ClassVar[str] = "create_snap"
    dev_id: int
    origin_id: int


@dataclass(frozen=True, slots=True)
class Delete(_Text):
    NAME: ClassVar[str] = "delete"
    dev_id: int


@dataclass(frozen=True, slots=True)
class SetTransactionId(_Text):
    NAME: ClassVar[str] = "set_transaction_id"
    current: int
    new: int


@dataclass(frozen=True, slots=True)
class ReserveMetadataSnap(_Text):
    NAME: ClassVar[str] = "reserve_metadata_snap"


@dataclass(frozen=True, slots=True)
class ReleaseMetadataSnap(_Text):
    NAME: ClassVar[str] = "release_metadata_snap"


PoolMessage: TypeAlias = CreateThin | CreateSnap | Delete | SetTransactionId | ReserveMetadataSnap | ReleaseMetadataSnap

# name -> (constructor, the largest value of each argument, what the argument is called)
_GRAMMAR: Final[dict[str, tuple[Callable[..., PoolMessage], int, int, str]]] = {
    CreateThin.NAME: (CreateThin, 1, MAX_DEV_ID, "device id"),
    CreateSnap.NAME: (CreateSnap, 2, MAX_DEV_ID, "device id"),
    Delete.NAME: (Delete, 1, MAX_DEV_ID, "device id"),
    SetTransactionId.NAME: (SetTransactionId, 2, MAX_U64, "transaction id"),
    ReserveMetadataSnap.NAME: (ReserveMetadataSnap, 0, 0, ""),
    ReleaseMetadataSnap.NAME: (ReleaseMetadataSnap, 0, 0, ""),
}


def split_message(text: str) -> list[str]:
    """The words of a message; device-mapper itself refuses an empty one."""
    words = split_words(text)
    if not words:
        raise InvalidArgument("message: empty message")
    return words


def parse_pool_message(words: Sequence[str]) -> PoolMessage:
    name, arguments = words[0].lower(), words[1:]
    if name not in _GRAMMAR:
        raise InvalidArgument(f"Unrecognised thin pool target message received: {words[0]}")
    constructor, count, maximum, what = _GRAMMAR[name]
    if len(arguments) != count:
        raise InvalidArgument(f"{name}: message received with {len(arguments)} arguments instead of {count}")
    numbers = []
    for word in arguments:
        number = parse_decimal(word, maximum=maximum)
        if number is None:
            raise InvalidArgument(f"{name}: Message received with invalid {what}: {word}")
        numbers.append(number)
    return constructor(*numbers)
