"""What everybody in a pool reads: its mode, its settings, its metadata and data, its clock.

Promises: plain state, no decisions. Modes change in pool/space.py alone, settings at a resume (pool/pool.py).
"""

from collections.abc import Callable

from thinfs.bio import LowerDevice
from thinfs.blockdev import BlockDevice
from thinfs.pool.data_device import DataDevice
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.modes import PoolMode, PoolSettings


class PoolState:
    """`clock` gives seconds, `notify` raises a dm event on the pool's device, `wake` says that bios were deferred."""

    __slots__ = (
        "clock", "data", "discard_passdown", "error_if_no_space", "metadata", "metadata_device", "mode",
        "no_space_timeout", "notify", "settings", "suspended", "wake", "zero_new_blocks",
    )  # fmt: skip

    def __init__(
        self,
        metadata: PoolMetadata,
        metadata_device: BlockDevice | LowerDevice,
        data: DataDevice,
        *,
        clock: Callable[[], float],
        notify: Callable[[], None],
        no_space_timeout: float,
    ) -> None:
        self.metadata = metadata
        self.metadata_device = metadata_device
        self.data = data
        self.clock = clock
        self.notify = notify
        self.no_space_timeout = no_space_timeout  # seconds; 0: never. Read when the mode is entered
        self.wake: Callable[[], None] = _nobody
        self.mode = PoolMode.WRITE
        self.settings = PoolSettings(frozenset(), 0, 0)
        self.suspended = True
        self.zero_new_blocks = True
        self.discard_passdown = True
        self.error_if_no_space = False


def _nobody() -> None:
    return
