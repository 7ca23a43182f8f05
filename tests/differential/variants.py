"""The kinds of pools that histories are made for: features, sizes, and what the model can say about them."""

from dataclasses import dataclass
from typing import Final

POOL: Final = "pool"
PAGE: Final = 4096
KIB: Final = 1 << 10
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Variant:
    name: str
    features: str = "1 no_discard_passdown"
    block_sectors: int = 128
    data_blocks: int = 512
    thin_blocks: int = 300
    metadata_bytes: int = 16 * MIB
    passdown: bool = False  # the kernel's data lies on a loop device, as ubd's discard limit is half a block
    origin_bytes: int = 0  # of an external origin, 0 for none
    read_only_reloads: bool = False
    scattered: bool = False  # virtual blocks over the whole volume instead of its first few hundred
    runs_out: bool = False  # of metadata space, or worse: the model knows nothing then
    shape: str = ""  # of tests/differential/shapes, "" for random operations
    length: int = 200  # operations of a history
    low_water: int = 0
    no_space_timeout: int = 60  # seconds

    @property
    def block_bytes(self) -> int:
        return self.block_sectors * 512

    @property
    def data_bytes(self) -> int:
        return (self.data_blocks + 4096) * self.block_bytes  # room to grow


_SPARSE: Final = "2 skip_block_zeroing no_discard_passdown"  # a page written costs a page of memory

VARIANTS: Final = {
    variant.name: variant
    for variant in (
        Variant("plain"),
        Variant("skip-zeroing", "2 skip_block_zeroing no_discard_passdown"),
        Variant("blocks-192k", block_sectors=384),
        Variant("blocks-1m", block_sectors=2048, data_blocks=256, thin_blocks=100),
        Variant("ignore-discard", "1 ignore_discard"),
        Variant("full-data", "2 no_discard_passdown error_if_no_space", data_blocks=24, runs_out=True),
        Variant("metadata-64k", metadata_bytes=64 * KIB, runs_out=True),
        Variant("metadata-128k", metadata_bytes=128 * KIB, runs_out=True),
        Variant("metadata-256k", metadata_bytes=256 * KIB, runs_out=True),
        Variant("passdown", "0", passdown=True),
        Variant("origin", origin_bytes=100 * 64 * KIB + 12 * KIB),
        Variant("deep-trees", data_blocks=2048, thin_blocks=4_000_000, scattered=True),
        Variant("read-only", read_only_reloads=True, runs_out=True),
        Variant("comb", _SPARSE, data_blocks=2048, thin_blocks=4_000_000, shape="comb", length=1800),
        Variant(
            "comb-snapshots", _SPARSE, data_blocks=4096, thin_blocks=4_000_000, shape="comb_snapshots", length=1800
        ),
        Variant("many-thins", _SPARSE, data_blocks=2048, thin_blocks=400, shape="many_thins", length=1200),
        Variant("wrap", "0", data_blocks=40, thin_blocks=24, passdown=True, shape="wrap", length=500),
        Variant(
            "wrap-unzeroed",
            "1 skip_block_zeroing",
            data_blocks=40,
            thin_blocks=24,
            passdown=True,
            shape="wrap",
            length=500,
        ),
        Variant("wrap-no-passdown", data_blocks=40, thin_blocks=24, shape="wrap", length=400),
        Variant("low-water", data_blocks=48, thin_blocks=60, shape="low_water", low_water=9, length=300),
        Variant("waiting", data_blocks=12, thin_blocks=30, shape="waiting", no_space_timeout=1, length=150),
        Variant(
            "reloads", "0", data_blocks=256, thin_blocks=64, passdown=True, shape="reloads", runs_out=True, length=300
        ),
        Variant(
            "growing",
            _SPARSE,
            data_blocks=1024,
            thin_blocks=4_000_000,
            metadata_bytes=128 * KIB,
            shape="growing",
            runs_out=True,
            length=900,
        ),
        Variant("faults", data_blocks=64, thin_blocks=60, shape="faults", runs_out=True, length=200),
    )
}
