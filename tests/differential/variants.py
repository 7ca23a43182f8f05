"""The kinds of pools that histories are made for: features, sizes, and what the model can say about them."""

from dataclasses import dataclass
from typing import Final

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
    runs_out: bool = False  # of data or metadata space: the model knows nothing then

    @property
    def block_bytes(self) -> int:
        return self.block_sectors * 512

    @property
    def data_bytes(self) -> int:
        return (self.data_blocks + 4096) * self.block_bytes  # room to grow


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
    )
}
