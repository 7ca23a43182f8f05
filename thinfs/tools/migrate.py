"""A thin copied out of its pool: the whole of it, or what differs from another thin that the target has already.

Promises: reads mapped blocks only; on a new file what is not mapped is a hole, on a device zeros; by delta, blocks that
the other had and this has not become zeros. Never writes the pool.
"""

from collections.abc import Callable, Iterator
from typing import Final

from thinfs.blockdev import BlockDevice
from thinfs.errors import InvalidArgument, NoSuchThin
from thinfs.tools.delta import Kind, stretches
from thinfs.tools.walk import PoolTrees
from thinfs.units import sectors_to_bytes

_COPY_BYTES: Final = 4 << 20


def root_of(trees: PoolTrees, dev_id: int) -> int:
    root = trees.roots().get(dev_id)
    if root is None:
        raise NoSuchThin(f"thin {dev_id}: does not exist in {trees.device.label}")
    return root


def extent_bytes(trees: PoolTrees, dev_id: int) -> int:
    """Behind the last block that it maps; a thin's size is its table's, the pool does not know it."""
    last = 0
    for batch in trees.batches(root_of(trees, dev_id)):
        at = 4 * (batch.nr_runs - 1)
        last = batch.words[at] + batch.words[at + 2]
    return last * sectors_to_bytes(trees.superblock.data_block_size)


def pieces(trees: PoolTrees, dev_id: int, base_id: int | None, *, zeros: bool) -> Iterator[tuple[int, int, int]]:
    """(thin block, data block or -1 for zeros, how many), ascending. Without a base, of all that is mapped; and with
    `zeros` of all between as well."""
    root = root_of(trees, dev_id)
    if base_id is not None:
        for one in stretches(trees.runs(root_of(trees, base_id)), trees.runs(root)):
            if one.kind is not Kind.SAME:
                yield one.begin, one.right_data, one.length
        return
    next_block = 0
    for run in trees.runs(root):
        if zeros and run.thin_begin > next_block:
            yield next_block, -1, run.thin_begin - next_block
        yield run.thin_begin, run.data_begin, run.length
        next_block = run.thin_begin + run.length


def copy(
    trees: PoolTrees,
    data: BlockDevice,
    target: BlockDevice,
    dev_id: int,
    base_id: int | None,
    *,
    zeros: bool,
    progress: Callable[[int], None],
) -> int:
    """How many bytes were copied. With `zeros` and no base, the target is zeros where the thin maps nothing."""
    block_bytes = sectors_to_bytes(trees.superblock.data_block_size)
    size = target.size_bytes
    copied = 0
    end = 0
    for thin_block, data_block, length in pieces(trees, dev_id, base_id, zeros=zeros):
        begin, end = thin_block * block_bytes, (thin_block + length) * block_bytes
        if begin >= size or (end > size and end - size >= block_bytes):
            raise InvalidArgument(f"{target.label}: {size} bytes, thin {dev_id} has data at {begin}")
        for offset in range(begin, min(end, size), _COPY_BYTES):
            nr = min(_COPY_BYTES, min(end, size) - offset)
            if data_block < 0:
                target.write(offset, bytes(nr))
                continue
            target.write(offset, data.read(data_block * block_bytes + offset - begin, nr))
            copied += nr
            progress(nr)
    if zeros and base_id is None:
        for offset in range(min(end, size), size, _COPY_BYTES):
            target.write(offset, bytes(min(_COPY_BYTES, size - offset)))
    target.flush()
    return copied
