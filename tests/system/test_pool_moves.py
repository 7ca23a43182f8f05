"""A pool moves between thinfs and a real kernel in either direction, contents and metadata intact."""

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from kernel_backend.block_io import digest, pattern
from kernel_backend.runner import Guest
from kernel_backend.uml import INSTALLED, KERNELS, GuestKernel
from tests.system.images import PoolFiles, make_pool
from tests.thin_tools import accepted
from thinfs.userspace.devices import open_device_mapper

MIB = 1 << 20


@pytest.fixture(params=[*KERNELS.values(), INSTALLED], ids=lambda kernel: kernel.name)
def kernel(request: pytest.FixtureRequest) -> GuestKernel:
    """Any version must do this, also the one that happens to be installed."""
    assert isinstance(request.param, GuestKernel)
    if request.param.missing is not None:
        pytest.skip(request.param.missing)
    return request.param


@pytest.fixture(scope="module")
def left_by_the_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-c", "from thinfs.cli.main import main; main()", "demo", "--no-docker", "--keep", directory],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return directory


def test_a_kernel_activates_the_pool_the_demo_left_and_reads_the_same_files(
    kernel: GuestKernel, left_by_the_demo: Path, tmp_path: Path
) -> None:
    for name in ("meta.data.img", "data.img"):
        subprocess.run(["cp", "--sparse=always", left_by_the_demo / name, tmp_path / name], check=True)
    with Guest(kernel, images=[str(tmp_path / "meta.data.img"), str(tmp_path / "data.img")]) as guest:
        metadata, data = (image.device for image in guest.images)
        guest.create("p", f"0 20971522 thin-pool {metadata} {data} 128 65536 1 skip_block_zeroing")
        major = guest.info("p").major
        for dev_id, name in enumerate(("base", "snap")):
            guest.create(name, f"0 2097152 thin {major}:0 {dev_id}")
            mounted = guest.shell(f"mkdir /run/{name} && mount -o ro {guest.node(name)} /run/{name}")
            assert mounted.returncode == 0, mounted.stderr
        assert guest.shell("cat /run/base/id.txt").stdout == "hello world, I am a base\n"
        assert guest.shell("cat /run/snap/id.txt").stdout == "hello world, I am a base\nhello world, I am snap1\n"
        assert guest.shell("ls /run/base").stdout.split() == ["id.txt", "lost+found"]
        assert guest.shell("ls /run/snap").stdout.split() == ["id.txt", "lost+found", "snap1.txt"]
        assert guest.shell("cat /run/snap/snap1.txt").stdout == "only in the snapshot\n"
        assert guest.shell("umount /run/base /run/snap").returncode == 0
        for name in ("base", "snap", "p"):
            guest.remove(name)
    accepted(tmp_path / "meta.data.img")


def _use_in_the_kernel(kernel: GuestKernel, pool: PoolFiles) -> dict[str, str]:
    """Make a pool, a file system in a thin and a snapshot of it; digests of the two volumes' first 64 MiB."""
    digests = {}
    with Guest(kernel, images=[str(pool.metadata), str(pool.data)]) as guest:
        metadata, data = (image.device for image in guest.images)
        guest.create("p", f"0 {pool.data.stat().st_size // 512} thin-pool {metadata} {data} 128 0")
        major = guest.info("p").major
        guest.message("p", "create_thin 7")
        guest.create("t", f"0 {64 * MIB // 512} thin {major}:0 7")
        made = guest.shell(f"mkfs.ext4 -q {guest.node('t')}")
        assert made.returncode == 0, made.stderr
        handle = guest.open(guest.node("t"))
        guest.write_pattern(handle, 40 * MIB, MIB, 1)
        guest.message("p", "create_snap 8 7")
        guest.create("s", f"0 {64 * MIB // 512} thin {major}:0 8")
        other = guest.open(guest.node("s"))
        guest.write_pattern(other, 40 * MIB + 4096, 4096, 2)
        guest.discard(other, 41 * MIB - 65536, 65536)
        for name, number in (("t", handle), ("s", other)):
            guest.flush(number)
            digests[name] = guest.read_digest(number, 0, 64 * MIB)
            guest.close_handle(number)
        for name in ("t", "s", "p"):
            guest.remove(name)
    return digests


async def test_thinfs_activates_a_pool_that_a_kernel_made_and_reads_the_same_bytes(
    kernel: GuestKernel, tmp_path: Path
) -> None:
    pool = make_pool(tmp_path, data_bytes=256 * MIB, metadata_bytes=4 * MIB)
    digests = await trio.to_thread.run_sync(_use_in_the_kernel, kernel, pool)
    async with open_device_mapper(str(tmp_path / "mnt")) as mapper:
        await mapper.create("p", pool.table())
        for dev_id, name in ((7, "t"), (8, "s")):
            await mapper.create(name, f"0 {64 * MIB // 512} thin /dev/mapper/p {dev_id}")
            device = await mapper.open(name)
            assert digest(await device.read(0, 64 * MIB)) == digests[name]
            if name == "t":
                assert await device.read(40 * MIB, MIB) == pattern(1, MIB)
            await device.write(10 * MIB, pattern(3, MIB))
            await device.flush()
            await device.aclose()
    accepted(pool.metadata)
