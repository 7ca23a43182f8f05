"""Runs of mappings, by the batch: consecutive thin blocks on consecutive data blocks, of one time.

Promises: a batch is one array of u64, four a run, made from leaves at C speed (_mappings.c); batches of a tree are
joined over its leaves and over each other, so that no two runs continue each other. Iterating over a batch makes an
object of each run: fine for thousands, not for millions.
"""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final, NamedTuple

from thinfs.blockdev import Buffer
from thinfs.ondisk.btree_node import BtreeNode
from thinfs.ondisk.checksum import stored_block_nr
from thinfs.ondisk.thin import unpack_mapping
from thinfs.tools import _mappings

RUN_WORDS: Final = 4
BATCH_RUNS: Final = 8192  # 256 KiB
MAX_LEAF_ENTRIES: Final = 254  # of 16 bytes, in a block without its header


class MappingRun(NamedTuple):
    thin_begin: int
    data_begin: int
    length: int
    time: int


@dataclass(frozen=True, slots=True)
class RunBatch:
    """The first `nr_runs` of `words`, which may be longer."""

    words: "array[int]"
    nr_runs: int

    @classmethod
    def of(cls, runs: Iterable[MappingRun]) -> "RunBatch":
        words = array("Q", chain.from_iterable(runs))
        return cls(words, len(words) // RUN_WORDS)

    def __len__(self) -> int:
        return self.nr_runs

    def __iter__(self) -> Iterator[MappingRun]:
        words = iter(self.words)
        return islice(map(MappingRun, words, words, words, words), self.nr_runs)


def keys_of(batch: RunBatch) -> tuple[int, int]:
    """The first thin block and the one behind the last, of a batch that is not empty."""
    last = RUN_WORDS * (batch.nr_runs - 1)
    return batch.words[0], batch.words[last] + batch.words[last + 2]


def leaf_batch(leaf: Buffer) -> RunBatch:
    """The runs of one leaf, the whole block; BadMetadata is for those who read it: a ValueError where it is none."""
    words = array("Q", bytes(8 * RUN_WORDS * MAX_LEAF_ENTRIES))
    return RunBatch(words, _mappings.append_runs(leaf, words, 0))


def leaf_mapping(leaf: Buffer, i: int) -> tuple[int, int]:
    """Thin block and data block of entry `i`."""
    node = BtreeNode.parse(leaf, stored_block_nr(leaf))
    return node.keys[i], unpack_mapping(node.values[i])[0]


def joined(leaves: Iterable[Buffer]) -> Iterator[RunBatch]:
    """The runs of leaves that follow each other."""
    words, nr_runs = _room(), 0
    for leaf in leaves:
        if nr_runs >= BATCH_RUNS:
            yield RunBatch(words, nr_runs - 1)
            last = words[RUN_WORDS * (nr_runs - 1) : RUN_WORDS * nr_runs]  # the next leaf may continue it
            words, nr_runs = _room(), 1
            words[:RUN_WORDS] = last
        nr_runs = _mappings.append_runs(leaf, words, nr_runs)
    if nr_runs:
        yield RunBatch(words, nr_runs)


def _room() -> "array[int]":
    return array("Q", bytes(8 * RUN_WORDS * (BATCH_RUNS + MAX_LEAF_ENTRIES)))
