"""SIGKILL of the server in the middle of writes: what was fsynced is there, and the metadata is sound."""

import os
import random
import threading
from pathlib import Path

import pytest

from tests.system.conftest import Server
from tests.system.images import make_pool
from tests.thin_tools import accepted

BLOCK = 65536
NR_BLOCKS = 256


def _write_until_it_fails(path: Path, seed: int, synced: dict[int, bytes], enough: threading.Event) -> None:
    """Write and fsync random pieces; `synced` is what the file must hold from then on."""
    random_source = random.Random(seed)
    try:
        with open(path, "r+b", buffering=0) as volume:
            for count in range(100_000):
                block = random_source.randrange(NR_BLOCKS)
                data = random_source.randbytes(16) * 256
                synced.pop(block, None)  # until the fsync returns either content is right
                volume.seek(block * BLOCK)
                volume.write(data)
                os.fsync(volume.fileno())
                synced[block] = data
                if count == 60:
                    enough.set()
    except OSError:
        return
    finally:
        enough.set()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_everything_fsynced_survives_a_kill_in_the_middle_of_writes(server: Server, seed: int) -> None:
    pool = make_pool(server.directory, data_bytes=1 << 28, metadata_bytes=4 << 20)
    server.dmsetup("create", "p", "--table", pool.table())
    server.dmsetup("message", "p", "0", "create_thin 0")
    server.dmsetup("create", "t", "--table", f"0 {NR_BLOCKS * BLOCK // 512} thin {server.mount}/p 0")
    synced: dict[int, bytes] = {}
    enough = threading.Event()
    writer = threading.Thread(target=_write_until_it_fails, args=(server.mount / "t", seed, synced, enough))
    writer.start()
    enough.wait()
    server.kill()
    writer.join()
    expected = dict(synced)
    assert len(expected) > 40

    accepted(pool.metadata)
    server.start()
    server.dmsetup("create", "p", "--table", pool.table())
    server.dmsetup("create", "t", "--table", f"0 {NR_BLOCKS * BLOCK // 512} thin {server.mount}/p 0")
    with open(server.mount / "t", "rb") as volume:
        for block, data in expected.items():
            volume.seek(block * BLOCK)
            assert volume.read(len(data)) == data, f"block {block}"
    for name in ("t", "p"):
        server.dmsetup("remove", name)
    server.stop()
    accepted(pool.metadata)


def test_a_server_ended_by_sigterm_commits_and_leaves_nothing(server: Server) -> None:
    pool = make_pool(server.directory, data_bytes=1 << 26, metadata_bytes=4 << 20)
    server.dmsetup("create", "p", "--table", pool.table())
    server.dmsetup("message", "p", "0", "create_thin 0")
    server.dmsetup("create", "t", "--table", f"0 2048 thin {server.mount}/p 0")
    (server.mount / "t").open("r+b").close()
    with open(server.mount / "t", "r+b") as volume:
        volume.write(b"not fsynced")
    server.stop()
    assert not os.path.ismount(server.mount)
    assert not (server.directory / "mnt.sock").exists()
    accepted(pool.metadata)
    server.start()
    server.dmsetup("create", "p", "--table", pool.table())
    server.dmsetup("create", "t", "--table", f"0 2048 thin {server.mount}/p 0")
    assert (server.mount / "t").read_bytes()[:11] == b"not fsynced"
