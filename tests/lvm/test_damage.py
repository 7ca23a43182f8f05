"""Damage anywhere in what LVM wrote, by a seed: what is read is right or refused in one line, and nothing hangs."""

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from tests.lvm.builder import AREA, World, lvm_crc, text_of
from tests.lvm.reading import Read, read_all
from thinfs.errors import ThinfsError

DAMAGES = int(os.environ.get("THINFS_LVM_DAMAGES", "60"))


def read_or_refused(paths: Sequence[str]) -> Read | None:
    try:
        return read_all(paths)
    except ThinfsError as error:
        assert "\n" not in str(error)
        return None


def right(read: Read | None, world: World) -> None:
    """Whatever is read under a name is what is under that name."""
    if read is not None:
        for name, data in read.contents.items():
            assert data == world.contents[name], name


def damage(random: Random, data: bytearray, begin: int, end: int) -> None:
    for _ in range(random.choice((1, 1, 2, 8))):
        place = random.randrange(begin, end)
        kind = random.randrange(4)
        if kind == 0:
            data[place] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[place] = random.randrange(256)
        elif kind == 2:
            length = random.choice((8, 64, 512))
            data[place : place + length] = random.choice((bytes, random.randbytes))(length)[: len(data) - place]
        else:
            place &= ~7
            data[place : place + 8] = struct.pack("<Q", random.choice((0, 1, 511, 1 << 31, 1 << 63, (1 << 64) - 1)))


def test_damaged_labels_and_areas(world: World, tmp_path: Path) -> None:
    for seed in range(DAMAGES):
        random = Random(seed)
        world.write(tmp_path)
        for disk in world.disks.values():
            if random.random() < 0.7:
                length = len(disk.data)
                begin, end = random.choice(((512, 1024), (512, 700), (4096, 4608), (4608, 4608 + 5000)))
                damage(random, disk.data, begin, end)
                assert len(disk.data) == length
        right(read_or_refused(world.store(tmp_path)), world)


def test_damaged_labels_and_areas_with_their_checksums_made_right(world: World, tmp_path: Path) -> None:
    """What an enemy would do. He may well lead to other bytes of the disks, but nowhere else."""
    for seed in range(DAMAGES):
        random = Random(seed)
        world.write(tmp_path)
        for disk in world.disks.values():
            kind = random.randrange(3)
            if kind == 0:
                damage(random, disk.data, 512 + 20, 512 + 160)
                disk.data[528:532] = struct.pack("<I", lvm_crc(bytes(disk.data[532:1024])))
            elif kind == 1:
                damage(random, disk.data, 4100, 4100 + 90)
                disk.data[4096:4100] = struct.pack("<I", lvm_crc(bytes(disk.data[4100:4608])))
        read_or_refused(world.store(tmp_path))


NUMBERS = ("0", "1", "-1", "7", "39", "41", "128", "4294967296", "18446744073709551615", "1.5", '"x"', "[]")


def test_damaged_texts_with_their_checksums_made_right(world: World, tmp_path: Path) -> None:
    for seed in range(DAMAGES * 2):
        random = Random(seed)
        lines = text_of(world.text).splitlines()
        for _ in range(random.choice((1, 1, 2, 5))):
            i = random.randrange(len(lines))
            kind = random.randrange(6)
            name, _, value = lines[i].partition(" = ")
            if kind == 0:
                del lines[i]
            elif kind == 1:
                lines.insert(random.randrange(len(lines)), lines[i])
            elif kind == 2 and value:
                lines[i] = f"{name} = {random.choice(NUMBERS)}"
            elif kind == 3 and value:
                other = random.choice(lines).partition(" = ")[2]
                lines[i] = f"{name} = {other}"
            elif kind == 4:
                lines[i] = lines[i].replace("pv0", random.choice(("pv1", "pv9", "thick", "pool", "one")))
            else:
                place = random.randrange(len(lines[i]) + 1)
                lines[i] = lines[i][:place] + random.choice('"{}[]=,\\# 9z') + lines[i][place:]
        raw = "\n".join(lines).encode()[: AREA[1] - 600]
        for disk in world.disks.values():
            disk.write_label()
            disk.write_area(0, raw)
        read_or_refused(world.store(tmp_path))


def test_damaged_pool_metadata(world: World, tmp_path: Path) -> None:
    """Every block of it has a checksum: a volume is right or refused."""
    world.write(tmp_path)
    sound = {name: bytes(disk.data) for name, disk in world.disks.items()}
    for seed in range(DAMAGES):
        random = Random(seed)
        for name, disk in world.disks.items():
            disk.data[:] = sound[name]
        disk = world.disks["pv1"]
        begin = disk.extents(12)
        damage(random, disk.data, begin, begin + random.choice((4096, 12 * 4096)))
        right(read_or_refused(world.store(tmp_path)), world)


@pytest.mark.parametrize("seed", range(20))
def test_disks_of_garbage(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    path = tmp_path / "garbage"
    data = bytearray(random.randbytes(256 << 10))
    data[510:512] = b"\x55\xaa"
    for place, word in ((512, b"EFI PART"), (1024, b"LABELONE"), (4096, b"EFI PART"), (1536, b"LABELONE")):
        if random.random() < 0.6:
            data[place : place + len(word)] = word
    path.write_bytes(data)
    read = read_or_refused([str(path)])
    assert read is not None
    assert read.contents == {}
