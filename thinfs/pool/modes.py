"""The pool's modes, ordered by degradation, and what each one does with each kind of I/O.

Source: docs/reference/behaviour.md, 5. A mode is never left downwards in this order except as
pool.set_mode allows; FAIL is final.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from thinfs.dm.table import Feature


class PoolMode(IntEnum):
    WRITE = 0
    OUT_OF_DATA_SPACE = 1
    OUT_OF_METADATA_SPACE = 2
    READ_ONLY = 3
    FAIL = 4


@dataclass(frozen=True, slots=True)
class ModeRules:
    """One row of the mode table: what the status line says and which operations are served."""

    status: str
    description: str  # the kernel's words in "switching pool to … mode"
    allocates: bool  # writes that need a block are provisioned
    discards: bool  # False: a discard succeeds without effect
    messages: bool
    metadata_writable: bool


MODES: Final[dict[PoolMode, ModeRules]] = {
    PoolMode.WRITE: ModeRules("rw", "write", True, True, True, True),
    PoolMode.OUT_OF_DATA_SPACE: ModeRules("out_of_data_space", "out-of-data-space", False, True, True, True),
    PoolMode.OUT_OF_METADATA_SPACE: ModeRules("ro", "read-only", False, False, False, False),
    PoolMode.READ_ONLY: ModeRules("ro", "read-only", False, False, False, False),
    PoolMode.FAIL: ModeRules("Fail", "fail", False, False, False, False),
}


@dataclass(slots=True)
class PoolSettings:
    """What one thin-pool table line asks of the pool; the pool adopts it at each resume.

    `mode` starts as requested and then follows the pool, so that a plain suspend and resume keeps
    the mode while a reloaded table asks afresh.
    """

    features: frozenset[Feature]
    low_water_blocks: int
    nr_data_blocks: int  # table length // block size
    mode: PoolMode = PoolMode.WRITE
    guard_blocks: int = 0  # of the server's own: see NewMappings.provision

    def __post_init__(self) -> None:
        if Feature.READ_ONLY in self.features:
            self.mode = PoolMode.READ_ONLY

    @property
    def zero_new_blocks(self) -> bool:
        return Feature.SKIP_BLOCK_ZEROING not in self.features

    @property
    def error_if_no_space(self) -> bool:
        return Feature.ERROR_IF_NO_SPACE in self.features

    @property
    def discard_enabled(self) -> bool:
        return Feature.IGNORE_DISCARD not in self.features

    @property
    def discard_passdown(self) -> bool:
        return self.discard_enabled and Feature.NO_DISCARD_PASSDOWN not in self.features
