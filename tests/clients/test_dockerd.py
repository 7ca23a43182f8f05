"""dockerd's devicemapper driver on thinfs: containers run in loop mode and on a pool of LVM ("direct-lvm")."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients import dockerd
from tests.clients import lvm as lvm_programs
from tests.clients.conftest import MIB, need, need_block_devices
from tests.clients.dockerd import Docker, running
from tests.clients.leftovers import clear_away, mounts_of
from tests.clients.lvm import group_on
from tests.system.conftest import Server, server

__all__ = ["server"]

LOOP_MODE = ("--storage-opt", "dm.loopdatasize=1G", "--storage-opt", "dm.loopmetadatasize=64M")


@pytest.fixture(autouse=True)
def dockerd_can_run(server: Server) -> Iterator[None]:
    reason = dockerd.missing()
    if reason is not None:
        pytest.skip(reason)
    need("gcc", "mkfs.ext4")
    need_block_devices()
    if not Path("/sys/fs/cgroup").is_dir() or not os.listdir("/sys/fs/cgroup"):
        pytest.skip("no cgroups: no container runs here")
    try:
        yield
        assert mounts_of(server.directory) == [str(server.mount)] * (server.process is not None)
    finally:
        clear_away(server.directory)


def run_containers(docker: Docker) -> None:
    docker.import_image("tiny")
    assert docker("run", "--name", "c1", "--network", "none", "tiny", "/bin/hello") == "hello from a container\n"
    docker("commit", "c1", "layered")
    assert docker("run", "--name", "c2", "--network", "none", "layered", "/bin/hello") == "hello from a container\n"
    assert (docker.made("c1"), docker.made("c2")) == ("x", "xx")
    assert "Storage Driver: devicemapper" in docker("info")


def check_containers(docker: Docker) -> None:
    assert docker("start", "-a", "c2") == "hello from a container\n"
    assert (docker.made("c1"), docker.made("c2")) == ("x", "xxx")
    docker("rm", "c1", "c2")
    docker("rmi", "layered", "tiny")


def test_containers_in_loop_mode_outlive_a_kill_of_the_server(server: Server) -> None:
    directory = server.directory / "docker"
    with running(directory, server.environment, *LOOP_MODE) as docker:
        run_containers(docker)
        assert "-pool" in server.dmsetup("ls")
        server.kill()
    server.start()
    with running(directory, server.environment, *LOOP_MODE) as docker:
        check_containers(docker)
    assert server.dmsetup("ls") == "No devices found\n"


def test_containers_on_a_pool_of_lvm(server: Server) -> None:
    reason = lvm_programs.missing()
    if reason is not None:
        pytest.skip(reason)
    directory = server.directory / "docker"
    with group_on(server, f"thinfsd{os.getpid()}", 1024 * MIB, 1) as lvm:
        lvm("lvcreate", "--type", "thin-pool", "-L", "600M", "-n", "pool", lvm.group)
        pool = ("--storage-opt", f"dm.thinpooldev=/dev/mapper/{lvm.group}-pool")
        with running(directory, server.environment, *pool) as docker:
            run_containers(docker)
        with running(directory, server.environment, *pool) as docker:
            check_containers(docker)
