"""The targets there are: a name, the version that dm-thin of kernel 6.1 answers for it, and how a line is loaded."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from thinfs.dm.backend import TargetVersion
from thinfs.userspace.loading import Loading
from thinfs.userspace.target import Target
from thinfs.userspace.targets import error, linear, mirror, pool, refused, rescue, striped, thin, zero


@dataclass(frozen=True, slots=True)
class TargetType:
    version: tuple[int, int, int]
    load: Callable[[Loading], Awaitable[Target]]
    immutable: bool = False  # a live one is replaced by its own kind alone


TARGETS: Final[dict[str, TargetType]] = {  # in the order of kernel 6.1: the one that came last first
    "snapshot-merge": TargetType((1, 5, 0), refused.load),
    "snapshot-origin": TargetType((1, 9, 0), refused.load),
    "snapshot": TargetType((1, 16, 0), refused.load),
    "mirror": TargetType((1, 14, 0), mirror.load),
    "zero": TargetType((1, 1, 0), zero.load),
    "thin-pool": TargetType((1, 22, 0), pool.load, immutable=True),
    "thin": TargetType((1, 22, 0), thin.load),
    "striped": TargetType((1, 6, 0), striped.load),
    "linear": TargetType((1, 4, 0), linear.load),
    "error": TargetType((1, 5, 0), error.load),
}

TARGET_VERSIONS: Final = tuple(TargetVersion(name, target.version) for name, target in TARGETS.items())

TARGETS["thin-rescue"] = TargetType((1, 0, 0), rescue.load)  # ours: a kernel has it not, and does not list it
