"""What others may know of a thin's mappings, so as to serve its I/O without the engine.

Promises: a volume knows no mapping that the engine has not, but for a shared block's that is read until the next
commit; a permission goes before the change that takes it away is made, and with it what was under way by it. Never:
decides who may use the volume when (thinfs.userspace does). See thinfs/fuse/_volumes.c for the other side.
"""

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from thinfs.pool.modes import PoolMode

_EVERYTHING = 1 << 64  # thin blocks: more than any volume has


class Volume(Protocol):
    """A table of mappings (as the tree has them: data_block << 24 | time) with a gate, see thinfs.fuse._fuseshim."""

    def shut(self) -> None:
        """On return nothing is under way by it, and nothing begins. Nests."""

    def open(self) -> None: ...

    def learn(self, thin_block: int, mapping: int, /) -> None:
        """One that was unknown, or takes the place of a shared one."""

    def learn_leaf(self, keys: "array[int]", values: "array[int]", nr_entries: int, begin: int, end: int, /) -> None:
        """Those of a leaf within [begin, end) that were unknown."""

    def word(self, thin_block: int, /) -> int | None: ...

    def forget(self, begin: int, end: int, /) -> None:
        """Gate shut."""

    def set_clock(self, time: int, /) -> None:
        """Gate shut: older mappings are shared from now on."""

    def set_plain_flush(self, plain: bool, /) -> None:
        """Whether a flush is one of the data device and nothing more."""

    def serve(self, inode: int, size_bytes: int, writable: bool, /) -> None:
        """The file of this inode shows it."""

    def withdraw(self, inode: int, /) -> None:
        """On return nothing is under way for that file, and nothing begins."""

    @property
    def written_ns(self) -> int:
        """Time of the last write served, as time.time_ns(); 0 if none."""

    def close(self) -> None: ...


MakeVolume = Callable[[int, int], Volume]  # descriptor of the data device, bytes of a data block


class Served:
    """The one volume of a thin in core."""

    __slots__ = ("_changed", "_removing", "_replaced", "_write_mode", "volume")

    def __init__(self, volume: Volume, *, snapshotted_time: int, changed: bool, mode: PoolMode) -> None:
        self.volume = volume
        self._changed = changed
        self._write_mode = False
        self._replaced = False  # a block may be being read that the thin no longer maps
        self._removing = False
        self.set_snapshotted_time(snapshotted_time)
        self.set_mode(mode)

    @contextmanager
    def _shut(self) -> Iterator[None]:
        self.volume.shut()
        try:
            yield
        finally:
            self.volume.open()

    def found(self, thin_block: int, leaf: "Callable[[], tuple[array[int], array[int], int]]") -> None:
        """A mapping was looked up: the volume learns the whole leaf, unless it knows it already."""
        if self._removing or self.volume.word(thin_block) is not None:
            return
        keys, values, nr_entries = leaf()
        self.volume.learn_leaf(keys, values, nr_entries, 0, _EVERYTHING - 1)

    def mapped(self, thin_block: int, mapping: int, *, is_new: bool) -> None:
        """The tree has it now. One that was shared is replaced; what is read from it stays until the next commit."""
        self._replaced |= not is_new
        self.volume.learn(thin_block, mapping)

    def before_commit(self) -> None:
        """What was unmapped may be handed out again after it."""
        if self._replaced:
            self._replaced = False
            with self._shut():
                pass

    def before_removal(self, begin: int, end: int) -> None:
        """Of the mappings in [begin, end): nothing is learnt until `after_removal`."""
        self._removing = True
        with self._shut():
            self.volume.forget(begin, end)

    def after_removal(self) -> None:
        self._removing = False

    def forget_all(self) -> None:
        """The tree is another: after an abort, or there is none to be had."""
        with self._shut():
            self.volume.forget(0, _EVERYTHING - 1)

    def set_snapshotted_time(self, time: int) -> None:
        """On return no write to a block older than that is under way: it is in the snapshot, or will be copied."""
        with self._shut():
            self.volume.set_clock(time)

    def set_changed(self, changed: bool) -> None:
        self._changed = changed
        self.volume.set_plain_flush(self._write_mode and not changed)

    def end(self) -> None:
        """The thin is no longer the engine's: who shows the volume gets all I/O himself."""
        self.volume.set_plain_flush(False)
        self.forget_all()

    def set_mode(self, mode: PoolMode) -> None:
        """Without metadata to write, a flush may have to wait or fail; in fail mode all I/O does."""
        self._write_mode = mode is PoolMode.WRITE
        self.volume.set_plain_flush(self._write_mode and not self._changed)
        if mode is PoolMode.FAIL:
            self.forget_all()
