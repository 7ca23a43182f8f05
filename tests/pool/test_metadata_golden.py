"""The metadata, block for block and stale bytes included, that Linux 6.1.176 left after the same histories.

The digests were taken from the kernel's metadata device, in a guest whose data device was a dm-zero target; after
every operation the two counts of the status line were the same as here.
"""

import pytest

from tests.pool.seen_histories import SeenPool, Shape, digest, operations

SEEN = [
    pytest.param(
        Shape(seed=1, nr_operations=1500, nr_metadata_blocks=4096, nr_data_blocks=100_000, thin_blocks=4000),
        ("460/4096", "1358/100000"),
        "364fefc556ee9f17e8a338fe48da45b3",
        id="plain",
    ),
    pytest.param(
        Shape(
            seed=2, nr_operations=1500, nr_metadata_blocks=256, nr_data_blocks=100_000, thin_blocks=4000,
            metadata_snapshots=True, grow_to_blocks=40_000,
        ),
        ("4055/40000", "2571/100000"),
        "951431b47ad28f576b52cea275bc588e",
        id="growing metadata and metadata snapshots",
    ),
    pytest.param(
        Shape(
            seed=3, nr_operations=1000, nr_metadata_blocks=8192, nr_data_blocks=1_900_000, thin_blocks=2_000_000,
            longest_write=60, in_runs=True,
        ),
        ("1002/8192", "4243/1900000"),
        "7d0f6ce5064b1ac3ce3478db2aebaa9f",
        id="more bitmaps than cached index entries",
    ),
    pytest.param(
        Shape(
            seed=4, nr_operations=1500, nr_metadata_blocks=1024, nr_data_blocks=40_000, thin_blocks=700,
            metadata_snapshots=True,
        ),
        ("139/1024", "1324/40000"),
        "fbfbc53203aabb9fcfef1c9021263766",
        id="small thins, much sharing",
    ),
    pytest.param(
        Shape(seed=5, nr_operations=1500, nr_metadata_blocks=2048, nr_data_blocks=40_000, thin_blocks=1 << 36),
        ("261/2048", "2563/40000"),
        "1fd1b576ff7946674e24a42668ad1797",
        id="scattered mappings",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "status", "seen"), SEEN)
def test_the_metadata_is_the_kernel_s_byte_for_byte(shape: Shape, status: tuple[str, str], seen: str) -> None:
    pool = SeenPool(shape)
    for operation in operations(shape):
        pool.apply(operation)
    assert pool.status() == status
    assert digest(pool.device, pool.allocated()) == seen
