"""Pools of many mappings: built by thin_restore from XML, kept in the cache, handed out as copies in memory.

Promises: one volume, thin 0, whose blocks 0 to n-1 are mapped, neighbours in runs of 1000 that lie in reverse order on
the data device; free data and metadata for what a case adds. thin_restore leaves its leaves half full, as a pool
that was written in order has them: 126 mappings each, twice as many leaves as need be.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from bench.subjects import CACHE
from thinfs.units import METADATA_BLOCK_BYTES

RUN_BLOCKS: Final = 1000
SPARE_DATA_BLOCKS: Final = 200_000
SPARE_METADATA_BLOCKS: Final = 60_000
DATA_BLOCK_SECTORS: Final = 128


def _xml(nr_mappings: int) -> str:
    lines = [
        f'<superblock uuid="" time="0" transaction="0" version="2" data_block_size="{DATA_BLOCK_SECTORS}"'
        f' nr_data_blocks="{nr_mappings + SPARE_DATA_BLOCKS}">',
        f'<device dev_id="0" mapped_blocks="{nr_mappings}" transaction="0" creation_time="0" snap_time="0">',
    ]
    for begin in range(0, nr_mappings, RUN_BLOCKS):
        length = min(RUN_BLOCKS, nr_mappings - begin)
        lines.append(
            f'<range_mapping origin_begin="{begin}" data_begin="{nr_mappings - begin - length}" length="{length}"'
            ' time="0"/>'
        )
    return "\n".join([*lines, "</device>", "</superblock>", ""])


def image(nr_mappings: int) -> Path:
    """The cached image; building ten million mappings takes half a minute, once."""
    path = CACHE / f"metadata-{nr_mappings}.img"
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    half_done, xml = path.with_suffix(".part"), path.with_suffix(".xml")
    xml.write_text(_xml(nr_mappings))
    with open(half_done, "wb") as file:
        file.truncate((nr_mappings // 100 + SPARE_METADATA_BLOCKS) * METADATA_BLOCK_BYTES)
    try:
        subprocess.run(
            ["thin_restore", "-q", "-i", str(xml), "-o", str(half_done)],
            check=True, capture_output=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        os.rename(half_done, path)
    finally:
        xml.unlink()
        half_done.unlink(missing_ok=True)
    return path


def copy_in_memory(nr_mappings: int, directory: Path) -> str:
    target = directory / f"metadata-{nr_mappings}.img"
    subprocess.run(["cp", "--sparse=always", str(image(nr_mappings)), str(target)], check=True)
    return str(target)


def remove(path: str) -> None:
    os.unlink(path)


def on_memory() -> Path:
    directory = Path("/dev/shm")
    return directory if shutil.disk_usage(directory).free > 2 << 30 else CACHE
