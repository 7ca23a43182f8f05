"""What must be there after a power cut: plain dictionaries, told of every operation and every acknowledgement.

Promises: per thin and block, the contents that the last acknowledged flush or message made sure of, and all
contents since, any of which a sector may show; ids that must exist, must not, may. Snapshots are devices like others:
one that was never written allows exactly its old content. Knows nothing of pools, metadata or devices below.
"""

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from thinfs.units import DATA_BLOCK_MIN_SECTORS, SECTOR_BYTES

BLOCK_BYTES: Final = DATA_BLOCK_MIN_SECTORS * SECTOR_BYTES
ZEROS: Final = bytes(BLOCK_BYTES)


class Wild(Enum):
    """Contents nobody promised: a new block that was neither zeroed nor wholly written."""

    WILD = auto()


WILD = Wild.WILD


@dataclass(slots=True)
class ThinModel:
    """`sure` and `latest` hold whole blocks, absent ones are zeros; `since` holds what blocks held in between.

    `doubtful`: blocks a write of which failed; the live pool may show either.
    """

    sure: dict[int, bytes] = field(default_factory=dict)
    latest: dict[int, bytes] = field(default_factory=dict)
    since: dict[int, list[bytes | Wild]] = field(default_factory=dict)
    doubtful: set[int] = field(default_factory=set)

    def settle(self) -> None:
        """All of it is on stable storage now."""
        self.sure = dict(self.latest)
        self.since.clear()
        self.doubtful.clear()

    def change(self, block: int, contents: bytes | None, *, wild: bool = False) -> None:
        """A write or a discard (None) that may or may not reach the medium."""
        since = self.since.setdefault(block, [])
        since.append(ZEROS if contents is None else contents)
        if wild:
            since.append(WILD)
        if contents is None:
            self.latest.pop(block, None)
        else:
            self.latest[block] = contents

    def adopt(self, block: int, found: bytes) -> None:
        """The live pool shows this, whatever was tried. Zeros may be a hole, which a part write leaves wild."""
        if found == ZEROS:
            self.latest.pop(block, None)
        else:
            self.latest[block] = found

    def candidates(self, block: int) -> list[bytes | Wild]:
        return [self.sure.get(block, ZEROS), *self.since.get(block, []), self.latest.get(block, ZEROS)]

    def is_wild(self, block: int) -> bool:
        return any(one is WILD for one in self.since.get(block, ()))

    def blocks(self) -> set[int]:
        return self.sure.keys() | self.latest.keys() | self.since.keys()

    def accepts(self, block: int, found: bytes) -> bool:
        sure = self.sure.get(block, ZEROS)
        if sure == found:
            return True
        since = self.since.get(block)
        if not since:
            return False
        candidates = [sure, *(one for one in since if one is not WILD)]
        if len(candidates) <= len(since) or found in candidates:
            return True
        return all(
            any(one[begin : begin + SECTOR_BYTES] == found[begin : begin + SECTOR_BYTES] for one in candidates)
            for begin in range(0, BLOCK_BYTES, SECTOR_BYTES)
        )


@dataclass(slots=True)
class PoolModel:
    """`coming` and `going`: ids of the message under way, or of one that failed; `transaction_ids`: any of these."""

    thins: dict[int, ThinModel] = field(default_factory=dict)
    coming: dict[int, ThinModel] = field(default_factory=dict)
    going: dict[int, ThinModel] = field(default_factory=dict)
    transaction_ids: set[int] = field(default_factory=lambda: {0})
    held: set[bool] = field(default_factory=lambda: {False})

    def settle(self) -> None:
        """A commit of the whole pool was acknowledged: a message, a status."""
        for thin in self.thins.values():
            thin.settle()

    def everything(self) -> dict[int, ThinModel]:
        return {**self.thins, **self.coming, **self.going}

    def wrong_ids(self, found: set[int]) -> set[int]:
        return {dev_id for dev_id in self.thins if dev_id not in found} | (found - self.everything().keys())
