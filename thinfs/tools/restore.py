"""A pool out of the intermediate representation: what thin_restore does.

Promises: the mapped blocks of a thin are counted, whatever its details say; thins may come in any order. What the
target held is lost from the first block on (metadata_writer.py).
"""

from dataclasses import dataclass, replace

from thinfs.blockdev import BlockDevice
from thinfs.errors import InvalidArgument
from thinfs.tools.ir import PoolDump, PoolHeader
from thinfs.tools.metadata_writer import MetadataWriter
from thinfs.units import DATA_BLOCK_MAX_SECTORS, DATA_BLOCK_MULTIPLE_SECTORS


@dataclass(frozen=True, slots=True, kw_only=True)
class Overrides:
    """What is said on the command line instead of what the source says."""

    trans_id: int | None = None
    data_block_size: int | None = None  # sectors
    nr_data_blocks: int | None = None

    def of(self, header: PoolHeader) -> PoolHeader:
        given = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        return replace(header, **given)


def check_header(header: PoolHeader) -> None:
    size = header.data_block_size
    if size % DATA_BLOCK_MULTIPLE_SECTORS or not 0 < size <= DATA_BLOCK_MAX_SECTORS:
        raise InvalidArgument(
            f"data block size of {size} sectors: not a multiple of 128 up to {DATA_BLOCK_MAX_SECTORS}"
        )


def restore(pool: PoolDump, target: BlockDevice, overrides: Overrides = Overrides()) -> None:  # frozen
    header = overrides.of(pool.header)
    check_header(header)
    writer = MetadataWriter(target, header)
    for thin in pool.thins:
        leaves, nr = writer.leaves(thin.batches)
        writer.add_thin(thin.dev_id, replace(thin.details, mapped_blocks=nr), writer.nodes.tree(leaves))
    writer.finish()
