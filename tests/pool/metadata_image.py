"""What metadata tests share: a device whose crashes can be looked at, thin_check, and all mappings at once."""

from pathlib import Path
from random import Random

from tests.thin_tools import accepted
from thinfs.blockdev import Buffer, MemoryDevice
from thinfs.pool.metadata import PoolMetadata
from thinfs.steps import drive
from thinfs.units import METADATA_BLOCK_BYTES

Mappings = dict[int, dict[int, int]]


class CrashingDevice(MemoryDevice):
    """Remembers what was not flushed yet, block by block."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes, label="metadata")
        self.stable = MemoryDevice(size_bytes, label="metadata")
        self.unflushed: list[tuple[int, bytes]] = []
        self.nr_flushes = 0

    def resize(self, size_bytes: int) -> None:
        super().resize(size_bytes)
        self.stable.resize(size_bytes)

    def write(self, offset: int, data: Buffer) -> None:
        super().write(offset, data)
        for begin in range(0, len(data), METADATA_BLOCK_BYTES):
            self.unflushed.append((offset + begin, bytes(data[begin : begin + METADATA_BLOCK_BYTES])))

    def flush(self) -> None:
        for offset, data in self.unflushed:
            self.stable.write(offset, data)
        self.unflushed.clear()
        self.nr_flushes += 1

    def after_crash(self, random: Random | None = None) -> MemoryDevice:
        """As flushed last, and of what was written since any part (none without `random`)."""
        image = copy_of(self.stable)
        if random is not None:
            for offset, data in self.unflushed:
                if random.getrandbits(1):
                    image.write(offset, data)
        return image


def copy_of(device: MemoryDevice) -> MemoryDevice:
    copy = MemoryDevice(device.size_bytes, label=device.label)
    copy_into(copy, device)
    return copy


def copy_into(target: MemoryDevice, device: MemoryDevice) -> None:
    for page, data in device._pages.items():
        target.write(page * METADATA_BLOCK_BYTES, data)
    target.flush()


def save(device: MemoryDevice, path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(device.size_bytes)
        for page, data in device._pages.items():
            file.seek(page * METADATA_BLOCK_BYTES)
            file.write(data)
    return path


def thin_check(device: MemoryDevice, tmp_path: Path) -> None:
    """The independent judge: thin-provisioning-tools' own check of tree and reference counts."""
    accepted(save(device, tmp_path / "checked.img"))


def commit(metadata: PoolMetadata) -> None:
    drive(metadata.commit())


def new_pool(nr_metadata_blocks: int = 1024, nr_data_blocks: int = 1024) -> tuple[CrashingDevice, PoolMetadata]:
    """A fresh pool, resumed once."""
    device = CrashingDevice(nr_metadata_blocks * METADATA_BLOCK_BYTES)
    metadata = PoolMetadata.open(device, 128)
    metadata.resize_data(nr_data_blocks)
    commit(metadata)
    return device, metadata


def all_mappings(metadata: PoolMetadata) -> Mappings:
    """Device -> thin block -> data block, as the trees have it."""
    mappings: Mappings = {}
    for dev_id, root in metadata.objects.top.walk(metadata.transaction.mapping_root):
        mappings[dev_id] = {block: value[0] >> 24 for block, value in metadata.objects.bottom.walk(root[0])}
    return mappings
