"""Where thinfs keeps from doing what kernel 6.1 does: growing a pool that it cannot commit."""

from pathlib import Path

from trio.testing import MockClock

from tests.system.images import make_pool
from tests.thin_tools import accepted
from thinfs.userspace.blocking import run_on_the_spot
from thinfs.userspace.devices import open_device_mapper

MIB = 1 << 20


async def test_a_read_only_pool_grows_when_it_is_writable_again_and_by_the_size_of_its_device(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """6.1 grows in core while read-only, cannot commit, and then grows by the difference once more: 512 blocks with
    tables of 640 (read_only) and 768 blocks come out as 896, which is more than there are (seen)."""
    run_on_the_spot()
    files = make_pool(tmp_path, data_bytes=48 * MIB, metadata_bytes=16 * MIB)
    words = f"thin-pool {files.metadata} {files.data} 128 0"
    async with open_device_mapper() as mapper:
        await mapper.create("p", f"0 65536 {words}")
        await mapper.load("p", f"0 81920 {words} 1 read_only")
        await mapper.suspend("p")
        await mapper.resume("p")
        assert (await mapper.status("p")).split()[5:8] == ["0/512", "-", "ro"]
        await mapper.load("p", f"0 98304 {words}")
        await mapper.suspend("p")
        await mapper.resume("p")
        assert (await mapper.status("p")).split()[5:8] == ["0/768", "-", "rw"]
    accepted(files.metadata)
