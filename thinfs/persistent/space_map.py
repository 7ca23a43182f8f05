"""The mechanics both space maps share: 2-bit counts, index entries, the overflow tree, the search; mirrors
dm-space-map-common (its "ll" layer).

Promises: a range is stepped through one bitmap at a time, each bitmap shadowed once and its entry saved after;
whole runs of equal counts at C speed. Entries live in an `Index`: a btree with a 64-slot cache (data) or one
block held in memory (metadata). Never nests by itself: the metadata map does. Source: docs/reference/format.md, 5.
"""

import re
from typing import Final, Protocol

from thinfs.errors import BadMetadata, InvalidArgument
from thinfs.ondisk.space_map import OVERFLOW, PAIR_TO_COUNT, Bitmap, IndexEntry, SpaceMapRoot
from thinfs.persistent import btree_remove
from thinfs.persistent.btree import Btree, ValueType
from thinfs.persistent.transaction_manager import TransactionManager
from thinfs.units import ENTRIES_PER_BITMAP, MAX_U32, ceil_div

REF_COUNT: Final = ValueType(4)  # of the overflow tree
_BITMAP_BYTES: Final = ENTRIES_PER_BITMAP // 4

_HAS_FREE: Final = re.compile(
    b"[" + b"".join(re.escape(bytes((x,))) for x in range(256) if any(x >> s & 3 == 0 for s in (0, 2, 4, 6))) + b"]"
)
# A byte of four equal counts; how it becomes the next count up or down.
_ALL_0, _ALL_1, _ALL_2 = 0x00, 0xAA, 0x55
_RUN: Final = {x: re.compile(re.escape(bytes((x,))) + b"+") for x in (_ALL_0, _ALL_1, _ALL_2)}
_RUN_INC: Final = {_ALL_0: _ALL_1, _ALL_1: _ALL_2}
_RUN_DEC: Final = {_ALL_1: _ALL_0, _ALL_2: _ALL_1}


class Index(Protocol):
    """Where the index entries are."""

    def load(self, i: int) -> IndexEntry: ...
    def save(self, i: int, entry: IndexEntry) -> None: ...
    def commit(self) -> int:
        """Publish changed entries; the new bitmap_root."""

    def snapshot(self) -> "Index":
        """The entries as of a commit just done, for reading only."""


class LowLevelMap:
    """Counts of `nr_blocks` blocks."""

    __slots__ = ("_overflow", "bitmap_root", "index", "nr_allocated", "nr_blocks", "ref_count_root", "tm")

    def __init__(self, tm: TransactionManager, index: Index, root: SpaceMapRoot) -> None:
        if root.nr_allocated > root.nr_blocks:
            raise BadMetadata(f"space map: nr_allocated: {root.nr_allocated} of {root.nr_blocks} blocks")
        self.tm = tm
        self.index = index
        self.nr_blocks = root.nr_blocks
        self.nr_allocated = root.nr_allocated
        self.bitmap_root = root.bitmap_root
        self.ref_count_root = root.ref_count_root
        self._overflow = Btree(tm, REF_COUNT)

    def root(self) -> SpaceMapRoot:
        return SpaceMapRoot(self.nr_blocks, self.nr_allocated, self.bitmap_root, self.ref_count_root)

    def snapshot(self) -> "LowLevelMap":
        """The map as last committed: its blocks are never overwritten, so it can be read in place."""
        return LowLevelMap(self.tm, self.index.snapshot(), self.root())

    def commit(self) -> None:
        self.bitmap_root = self.index.commit()

    def extend(self, nr_extra_blocks: int) -> None:
        old = ceil_div(self.nr_blocks, ENTRIES_PER_BITMAP)
        self.nr_blocks += nr_extra_blocks
        for i in range(old, ceil_div(self.nr_blocks, ENTRIES_PER_BITMAP)):
            block_nr = self.tm.new(Bitmap.blank())
            self.index.save(i, IndexEntry(block_nr, ENTRIES_PER_BITMAP, 0))

    # -- reading

    def small_count(self, block: int) -> int:
        """0, 1, 2, or 3 for "3 or more"."""
        if not 0 <= block < self.nr_blocks:
            raise InvalidArgument(f"space map: block {block} of {self.nr_blocks}")
        i, bit = divmod(block, ENTRIES_PER_BITMAP)
        entries = self.tm.bm.read(self.index.load(i).blocknr, Bitmap).entries
        return PAIR_TO_COUNT[entries[bit >> 2] >> ((bit & 3) << 1) & 3]

    def count(self, block: int) -> int:
        small = self.small_count(block)
        if small != OVERFLOW:
            return small
        return self._overflow.lookup(self.ref_count_root, block) or 0

    def find_common(self, old: "LowLevelMap", begin: int) -> int | None:
        """The first block >= `begin` that is free now and was free at the last commit."""
        nr_blocks = self.nr_blocks
        last = ceil_div(nr_blocks, ENTRIES_PER_BITMAP) - 1
        old_end = ceil_div(old.nr_blocks, ENTRIES_PER_BITMAP)
        first, bit = divmod(begin, ENTRIES_PER_BITMAP)
        for i in range(first, last + 1):
            entry = self.index.load(i)
            if entry.nr_free:
                start = max(bit, entry.none_free_before)
                stop = (nr_blocks - 1) % ENTRIES_PER_BITMAP + 1 if i == last else ENTRIES_PER_BITMAP
                entries = self.tm.bm.read(entry.blocknr, Bitmap).entries
                found = _first_free(entries, start, stop)
                if found is not None and i < old_end:
                    old_nr = old.index.load(i).blocknr
                    if old_nr != entry.blocknr:
                        # A zero pair of the OR is free in both: what the kernel finds by trying one by one.
                        old_entries = self.tm.bm.read(old_nr, Bitmap).entries
                        if old_entries[found >> 2] >> ((found & 3) << 1) & 3:
                            both = int.from_bytes(entries, "little") | int.from_bytes(old_entries, "little")
                            found = _first_free(both.to_bytes(_BITMAP_BYTES, "little"), found, stop)
                if found is not None:
                    return i * ENTRIES_PER_BITMAP + found
            bit = 0
        return None

    # -- changing

    def inc(self, begin: int, end: int) -> int:
        """Add one reference to each of [begin, end); how many were free before."""
        before = self.nr_allocated
        self._step(begin, end, self._inc_bits)
        return self.nr_allocated - before

    def dec(self, begin: int, end: int) -> int:
        """Drop one reference of each of [begin, end); how many are free now."""
        before = self.nr_allocated
        self._step(begin, end, self._dec_bits)
        return before - self.nr_allocated

    def _step(self, begin: int, end: int, step: "_StepBits") -> None:
        if not 0 <= begin <= end <= self.nr_blocks:
            raise InvalidArgument(f"space map: blocks {begin}..{end} of {self.nr_blocks}")
        while begin < end:
            i, bit = divmod(begin, ENTRIES_PER_BITMAP)
            stop = min(end - begin + bit, ENTRIES_PER_BITMAP)
            entry = self.index.load(i)
            block_nr, bitmap, _ = self.tm.shadow(entry.blocknr, Bitmap)
            nr_free, hint = step(bitmap.entries, begin - bit, bit, stop, entry.nr_free, entry.none_free_before)
            if not 0 <= nr_free <= ENTRIES_PER_BITMAP or hint > ENTRIES_PER_BITMAP:
                raise BadMetadata(f"metadata block {entry.blocknr}: bitmap: its index entry cannot be: {entry}")
            self.index.save(i, IndexEntry(block_nr, nr_free, hint))
            begin += stop - bit

    def _inc_bits(self, entries: bytearray, base: int, bit: int, stop: int, nr_free: int, hint: int) -> tuple[int, int]:
        while bit < stop:
            position, shift = bit >> 2, (bit & 3) << 1
            byte = entries[position]
            if not shift and byte in _RUN_INC and stop - bit >= 4:
                nr = _run_length(entries, position, stop >> 2)
                entries[position : position + nr] = bytes((_RUN_INC[byte],)) * nr
                nr *= 4
                if byte == _ALL_0:
                    self.nr_allocated += nr
                    nr_free -= nr
                    if bit <= hint < bit + nr:
                        hint = bit + nr
                bit += nr
                continue
            pair = byte >> shift & 3
            if pair == 0:
                entries[position] = byte | 2 << shift
                self.nr_allocated += 1
                nr_free -= 1
                if hint == bit:
                    hint += 1
            elif pair == 2:  # a count of 1
                entries[position] = byte ^ 3 << shift
            elif pair == 1:  # a count of 2
                entries[position] = byte | 3 << shift
                self.ref_count_root, _ = self._overflow.insert(self.ref_count_root, (base + bit,), 3)
            else:
                self.ref_count_root, leaf, i = self._overflow.overwrite_leaf(self.ref_count_root, base + bit)
                if leaf.values[i] == MAX_U32:
                    raise BadMetadata(f"space map: block {base + bit}: more than {MAX_U32} references")
                leaf.values[i] += 1
            bit += 1
        return nr_free, hint

    def _dec_bits(self, entries: bytearray, base: int, bit: int, stop: int, nr_free: int, hint: int) -> tuple[int, int]:
        while bit < stop:
            position, shift = bit >> 2, (bit & 3) << 1
            byte = entries[position]
            if not shift and byte in _RUN_DEC and stop - bit >= 4:
                nr = _run_length(entries, position, stop >> 2)
                entries[position : position + nr] = bytes((_RUN_DEC[byte],)) * nr
                nr *= 4
                if byte == _ALL_1:
                    self.nr_allocated -= nr
                    nr_free += nr
                    hint = min(hint, bit)
                bit += nr
                continue
            pair = byte >> shift & 3
            if pair == 2:  # a count of 1
                entries[position] = byte & ~(3 << shift)
                self.nr_allocated -= 1
                nr_free += 1
                hint = min(hint, bit)
            elif pair == 1:  # a count of 2
                entries[position] = byte ^ 3 << shift
            elif pair == 3:
                self._dec_overflow(base + bit)
                if self._overflow.lookup(self.ref_count_root, base + bit) is None:
                    entries[position] = entries[position] & ~(3 << shift) | 1 << shift
            else:
                raise InvalidArgument(f"space map: block {base + bit} has no reference to drop")
            bit += 1
        return nr_free, hint

    def _dec_overflow(self, block: int) -> None:
        """The path is shadowed for the decrement even where the key then goes."""
        self.ref_count_root, leaf, i = self._overflow.overwrite_leaf(self.ref_count_root, block)
        if leaf.values[i] > OVERFLOW:
            leaf.values[i] -= 1
        else:
            self.ref_count_root, _ = btree_remove.remove(self._overflow, self.ref_count_root, block)


class _StepBits(Protocol):
    def __call__(
        self, entries: bytearray, base: int, bit: int, stop: int, nr_free: int, hint: int, /
    ) -> tuple[int, int]:
        """Step through [bit, stop) of one bitmap, of blocks from `base`; the new nr_free and hint."""


def _run_length(entries: bytearray, position: int, end: int) -> int:
    match = _RUN[entries[position]].match(entries, position, end)
    assert match is not None
    return match.end() - position


def _first_free(entries: bytes | bytearray, start: int, stop: int) -> int | None:
    """The first zero pair in [start, stop)."""
    bit = start
    while bit & 3 and bit < stop:
        if not entries[bit >> 2] >> ((bit & 3) << 1) & 3:
            return bit
        bit += 1
    match = _HAS_FREE.search(entries, bit >> 2, (stop + 3) >> 2)
    if match is None or bit >= stop:
        return None
    bit = match.start() << 2
    byte = entries[match.start()]
    while byte & 3:
        byte >>= 2
        bit += 1
    return bit if bit < stop else None
