"""Runs are four u64 each, thin_begin, data_begin, length, time, in the first `nr_runs` places of an array("Q")."""

from array import array
from mmap import mmap

from thinfs.blockdev import Buffer

def keys_ascend(block: Buffer, low: int, last: int) -> bool:
    """Whether the keys of a node of 8-byte values ascend strictly, within low..last."""

def entries(block: Buffer) -> tuple[int, int, int]:
    """How many a node has, its first key and its last; 0, 0, 0 of an empty one."""

def append_runs(block: Buffer, runs: array[int], nr_runs: int) -> int:
    """Those of a leaf, the first joined to the last that is there; how many there are then. Needs room for each key."""

def count_runs(runs: array[int], nr_runs: int, counts: bytearray | mmap, many: dict[int, int]) -> int:
    """One more for each data block; the number of the first run past the end of `counts`, where it stops, or -1."""

def count_leaf(block: Buffer, counts: bytearray | mmap, many: dict[int, int]) -> int:
    """As `count_runs`, of a leaf: the number of the first entry past the end, or -1."""

def nr_with_count(runs: array[int], nr_runs: int, counts: Buffer, count: int) -> int:
    """How many of their data blocks have this count."""

def clip_runs(runs: array[int], nr_runs: int, begin: int, end: int) -> bytes:
    """What of them lies on data blocks begin..end, as the words of runs."""

def histogram(runs: array[int], nr_runs: int, begin: int, width: int, slots: array[int]) -> None:
    """One more in the slot, `width` data blocks from `begin` on, in which each run begins."""

def pack_counts(counts: Buffer) -> bytes:
    """Bytes, one a count, as the two bits each that a bitmap has."""

def xml(runs: array[int], nr_runs: int) -> bytes: ...
def human_readable(runs: array[int], nr_runs: int) -> bytes: ...
def expand(runs: array[int], nr_runs: int, run: int, offset: int, most: int) -> tuple[bytes, bytes, int, int]:
    """Keys and values as a leaf has them, of at most so many mappings from `offset` in `run` on; where the next is."""

def first_wrong(runs: array[int], nr_runs: int, next_key: int) -> int:
    """The first run that is empty, too large for a mapping, or begins before the end of the one before it; or -1."""

def parse_mappings(text: Buffer, begin: int, runs: array[int], nr_runs: int) -> tuple[int, int]:
    """Elements of XML that are mappings, from `begin` on: where the first lies that is something else, not whole or
    has no room any more; how many runs there are then."""
