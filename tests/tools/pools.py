"""Metadata files with a history: of random operations by a seed, or brought about on purpose."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from thinfs.blockdev import FileDevice
from thinfs.pool.metadata import PoolMetadata
from thinfs.steps import drive

NR_DATA_BLOCKS = 20_000


@contextmanager
def changing(path: Path) -> Iterator[PoolMetadata]:
    """The pool's metadata; committed at the end."""
    device = FileDevice(str(path))
    try:
        metadata = PoolMetadata.open(device, 128)
        yield metadata
        drive(metadata.commit())
    finally:
        device.close()


def make_pool(path: Path, *, metadata_bytes: int = 8 << 20) -> Path:
    with path.open("wb") as file:
        file.truncate(metadata_bytes)
    with changing(path) as metadata:
        metadata.resize_data(NR_DATA_BLOCKS)
    return path


def write(metadata: PoolMetadata, dev_id: int, *thin_blocks: int) -> None:
    """Provision, or break the sharing of, these blocks."""
    thin = metadata.open_thin(dev_id)
    for thin_block in thin_blocks:
        thin.insert_block(thin_block, metadata.alloc_data_block())
    metadata.close_thin(thin)


def random_pool(path: Path, seed: int, *, steps: int = 250, metadata_snapshot: bool = False) -> Path:
    random = Random(seed)
    make_pool(path)
    with changing(path) as metadata:
        dev_ids = [random.randrange(1 << 24)]
        metadata.create_thin(dev_ids[0])
        for step in range(steps):
            kind = random.random()
            dev_id = random.randrange(1 << 24) if kind < 0.06 else random.randrange(1000)
            if kind < 0.06:
                metadata.create_thin(dev_id)
                dev_ids.append(dev_id)
            elif kind < 0.15 and dev_id not in dev_ids:
                metadata.create_snap(dev_id, random.choice(dev_ids))
                dev_ids.append(dev_id)
            elif kind < 0.19 and len(dev_ids) > 1:
                drive(metadata.commit())  # as the pool does before every message
                drive(metadata.delete_thin(dev_ids.pop(random.randrange(len(dev_ids)))))
            elif kind < 0.25:
                thin = metadata.open_thin(random.choice(dev_ids))
                begin = random.randrange(3000)
                drive(thin.remove_range(begin, begin + random.randrange(200)))
                metadata.close_thin(thin)
            else:
                begin, stride = random.randrange(3000), random.choice((1, 1, 1, 3))
                blocks = range(begin, begin + stride * random.choice((1, 2, 60)), stride)
                write(metadata, random.choice(dev_ids), *blocks)
            if random.random() < 0.3:
                drive(metadata.commit())
            if metadata_snapshot and step == steps // 2:
                drive(metadata.reserve_metadata_snap())
        metadata.set_transaction_id(0, 7)
    return path


Change = Callable[[PoolMetadata], object]
