"""Pool files for the tests of the whole."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class PoolFiles:
    metadata: Path
    data: Path

    def table(self, *, block_size_sectors: int = 128, features: str = "") -> str:
        sectors = os.path.getsize(self.data) // 512
        return f"0 {sectors} thin-pool {self.metadata} {self.data} {block_size_sectors} 0 {features}".rstrip()


def make_pool(directory: Path, *, data_bytes: int, metadata_bytes: int) -> PoolFiles:
    """Two sparse files."""
    pool = PoolFiles(directory / "metadata.img", directory / "data.img")
    for path, size in ((pool.metadata, metadata_bytes), (pool.data, data_bytes)):
        with path.open("wb") as file:
            file.truncate(size)
    return pool
