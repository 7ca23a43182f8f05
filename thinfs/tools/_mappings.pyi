"""Runs are four u64 each, thin_begin, data_begin, length, time, in the first `nr_runs` places of an array("Q")."""

from array import array

from thinfs.blockdev import Buffer

def keys_ascend(block: Buffer, low: int, last: int) -> bool:
    """Whether the keys of a node of 8-byte values ascend strictly, within low..last."""

def entries(block: Buffer) -> tuple[int, int, int]:
    """How many a node has, its first key and its last; 0, 0, 0 of an empty one."""

def append_runs(block: Buffer, runs: array[int], nr_runs: int) -> int:
    """Those of a leaf, the first joined to the last that is there; how many there are then. Needs room for each key."""

def count_runs(runs: array[int], nr_runs: int, counts: bytearray, many: dict[int, int]) -> int:
    """One more for each data block; the number of the first run past the end of `counts`, where it stops, or -1."""

def nr_with_count(runs: array[int], nr_runs: int, counts: Buffer, count: int) -> int:
    """How many of their data blocks have this count."""

def pack_counts(counts: Buffer) -> bytes:
    """Bytes, one a count, as the two bits each that a bitmap has."""

def xml(runs: array[int], nr_runs: int) -> bytes: ...
def human_readable(runs: array[int], nr_runs: int) -> bytes: ...
