"""fio writes and reads back what it wrote: in parallel, direct and buffered, on the file and on the block device."""

import threading
from pathlib import Path

import pytest

from tests.clients import fio
from tests.clients.conftest import MIB, Volumes, need, need_block_devices

SIZE = 64 * MIB


@pytest.fixture(params=["file", "block device"])
def target(request: pytest.FixtureRequest, volumes: Volumes) -> Path:
    need("fio")
    if request.param == "block device":
        need_block_devices()
    volumes.create_thin("t", SIZE)
    return volumes.file("t") if request.param == "file" else volumes.node("t")


@pytest.mark.parametrize("direct", [0, 1])
def test_random_writes_of_4k_to_64k_at_depth_16_are_read_back(volumes: Volumes, target: Path, direct: int) -> None:
    options = (f"--direct={direct}", "--bsrange=4k-64k", "--blockalign=4k", "--iodepth=16", "--ioengine=libaio")
    fio.verify(target, volumes.directory, *options, "--rw=randwrite", "--size=48m")


def test_sixteen_parallel_writers_do_not_disturb_each_other(volumes: Volumes, target: Path) -> None:
    options = ("--numjobs=16", "--size=3m", "--offset_increment=4m", "--direct=1", "--bsrange=4k-64k")
    more = ("--blockalign=4k", "--rw=randwrite", "--iodepth=4", "--ioengine=libaio")
    fio.verify(target, volumes.directory, *options, *more)


def test_a_mapping_of_the_file_is_written_and_read_back(volumes: Volumes, target: Path) -> None:
    if target.is_block_device():
        pytest.skip("fio's mmap engine fails to verify any block device, a plain loop device included")
    fio.verify(target, volumes.directory, "--ioengine=mmap", "--rw=randwrite", "--bs=4k", "--size=16m", "--fsync=64")


def test_synchronous_and_fsynced_writes_are_read_back(volumes: Volumes, target: Path) -> None:
    fio.verify(target, volumes.directory, "--ioengine=psync", "--rw=randwrite", "--bs=16k", "--size=8m", "--sync=1")
    fio.verify(target, volumes.directory, "--ioengine=psync", "--rw=randwrite", "--bs=16k", "--size=8m", "--fsync=8")


def test_writes_and_discards_mixed_are_read_back(volumes: Volumes, target: Path) -> None:
    options = ("--ioengine=libaio", "--direct=1", "--rw=randtrimwrite", "--bs=64k", "--size=32m", "--iodepth=8")
    need_block_devices()
    if not target.is_block_device():
        pytest.skip("fio trims block devices only")
    fio.verify(target, volumes.directory, *options)


def test_what_is_written_while_snapshots_are_taken_is_read_back(volumes: Volumes, target: Path) -> None:
    taken: list[str] = []
    errors: list[BaseException] = []
    over = threading.Event()

    def take_snapshots() -> None:
        try:
            while not over.is_set() and len(taken) < 30:
                volumes.create_snap(f"s{len(taken)}", "t", SIZE)
                taken.append(f"s{len(taken)}")
        except BaseException as error:
            errors.append(error)

    taker = threading.Thread(target=take_snapshots)
    taker.start()
    try:
        options = ("--direct=1", "--bsrange=4k-64k", "--blockalign=4k", "--iodepth=16", "--ioengine=libaio")
        fio.verify(target, volumes.directory, *options, "--rw=randwrite", "--size=32m", "--loops=4")
    finally:
        over.set()
        taker.join()
    assert errors == []
    assert len(taken) >= 2
