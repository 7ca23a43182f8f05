"""Histories of a pool that were also carried out by a kernel: operations from a seed, and how to apply them here.

One operation, one commit: a message, or I/O to one thin and then a flush. Writes cover whole blocks of 64 KiB, discards
are not passed down, new blocks are not zeroed. Within one write the kernel allocates data blocks in ascending order
and then inserts the mappings that were missing before those that break sharing.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from tests.pool.metadata_image import commit
from thinfs.blockdev import MemoryDevice
from thinfs.pool.metadata import PoolMetadata
from thinfs.pool.thin_device import ThinDevice
from thinfs.steps import drive
from thinfs.units import METADATA_BLOCK_BYTES

Kind = Literal["create", "snap", "delete", "write", "discard", "reserve", "release", "grow"]
Operation = tuple[Kind, int, int, int]  # device id and two numbers, as the kind needs them

NR_GROWN = (300, 5000, 20_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    seed: int
    nr_operations: int
    nr_metadata_blocks: int
    nr_data_blocks: int
    thin_blocks: int
    longest_write: int = 16
    in_runs: bool = False
    metadata_snapshots: bool = False
    grow_to_blocks: int = 0


def operations(shape: Shape) -> Iterator[Operation]:
    random = Random(shape.seed)
    unused = list(range(1000))
    random.shuffle(unused)
    active: list[int] = []
    held, size = False, shape.nr_metadata_blocks
    for number in range(shape.nr_operations):
        dice = random.random()
        if not active or (dice < 0.03 and len(active) < 8):
            active.append(unused.pop())
            yield "create", active[-1], 0, 0
        elif dice < 0.07 and len(active) < 12 and unused:
            origin = random.choice(active)
            active.append(unused.pop())
            yield "snap", active[-1], origin, 0
        elif dice < 0.075 and shape.metadata_snapshots:
            yield "release" if held else "reserve", 0, 0, 0
            held = not held
        elif dice < 0.08 and size < shape.grow_to_blocks:
            size = min(size + random.choice(NR_GROWN), shape.grow_to_blocks)
            yield "grow", 0, size, 0
        elif dice < 0.095 and len(active) > 3:
            yield "delete", active.pop(random.randrange(len(active))), 0, 0
        elif dice < 0.8:
            nr = random.choice((1, 1, 2, shape.longest_write))
            begin = random.randrange(shape.thin_blocks - nr)
            if shape.in_runs:
                begin = (random.choice((0, 7000, 14_000)) + number * shape.longest_write // 2) % (
                    shape.thin_blocks - nr
                )
            yield "write", random.choice(active), begin, begin + nr
        else:
            begin = random.randrange(shape.thin_blocks - 1)
            end = min(begin + random.choice((1, 2, 10, 50, 700)), shape.thin_blocks)
            yield "discard", random.choice(active), begin, end


class SeenPool:
    def __init__(self, shape: Shape) -> None:
        self.device = MemoryDevice(shape.nr_metadata_blocks * METADATA_BLOCK_BYTES)
        self.metadata = PoolMetadata.open(self.device, 128)
        self.metadata.resize_data(shape.nr_data_blocks)
        commit(self.metadata)
        self.thins: dict[int, ThinDevice] = {}

    def apply(self, operation: Operation) -> None:
        kind, dev_id, begin, end = operation
        metadata = self.metadata
        if kind == "create":
            metadata.create_thin(dev_id)
        elif kind == "snap":
            metadata.create_snap(dev_id, begin)
        elif kind == "delete":
            metadata.close_thin(self.thins.pop(dev_id))
            drive(metadata.delete_thin(dev_id))
        elif kind == "write":
            self._write(self.thins[dev_id], begin, end)
        elif kind == "discard":
            drive(self.thins[dev_id].remove_range(begin, end))
        elif kind == "reserve":
            drive(metadata.reserve_metadata_snap())
        elif kind == "release":
            drive(metadata.release_metadata_snap())
        else:
            self.device.resize(begin * METADATA_BLOCK_BYTES)
            metadata.resize_metadata(begin)
        commit(metadata)
        if kind in ("create", "snap"):
            self.thins[dev_id] = metadata.open_thin(dev_id)

    def _write(self, thin: ThinDevice, begin: int, end: int) -> None:
        found = {thin_block: thin.find_block(thin_block) for thin_block in range(begin, end)}
        prepared = [
            (old is not None, thin_block, self.metadata.alloc_data_block())
            for thin_block, old in found.items()
            if old is None or old[1]
        ]
        for _, thin_block, data_block in sorted(prepared):
            thin.insert_block(thin_block, data_block)

    def status(self) -> tuple[str, str]:
        """The two counts of the pool's status line."""
        metadata = self.metadata
        nr, data = metadata.nr_metadata_blocks, metadata.nr_data_blocks
        return f"{nr - metadata.nr_free_metadata_blocks}/{nr}", f"{data - metadata.nr_free_data_blocks}/{data}"

    def allocated(self) -> list[int]:
        sm = self.metadata.objects.metadata_sm
        return [block for block in range(sm.nr_blocks) if sm.count(block)]


def digest(image: MemoryDevice, blocks: list[int]) -> str:
    """Of the contents of `blocks`; of the superblock without its checksum and what lies behind its space map roots."""
    whole = hashlib.blake2b(digest_size=16)
    for block in blocks:
        data = bytearray(image.read(block * METADATA_BLOCK_BYTES, METADATA_BLOCK_BYTES))
        if block == 0:
            data[0:4] = bytes(4)
            data[96:192] = data[224:320] = bytes(96)
        whole.update(block.to_bytes(8, "little") + data)
    return whole.hexdigest()
