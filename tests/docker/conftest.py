"""Copies of the carried Docker directory, and what a crash may have done to them."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Machine, machine, mounted
from tests.docker.crashes import mappings_of
from tests.thin_tools import accepted
from thinfs.cli.demo_docker import carried_pool, unpack

__all__ = ["Machine", "machine", "mounted"]


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked once; never to be changed."""
    pool = carried_pool()
    assert pool is not None
    path = tmp_path_factory.mktemp("docker-original")
    unpack(pool, path)
    return path


@pytest.fixture
def whole(original: Path, tmp_path: Path) -> Path:
    """A copy with its data, for what mounts."""
    copy = tmp_path / "docker"
    subprocess.run(["cp", "-r", "--sparse=always", "--reflink=auto", original, copy], check=True)
    return copy


@pytest.fixture
def docker(original: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy whose data file is a hole; its metadata must be valid at the end and hold Docker's mappings."""
    copy = tmp_path / "docker"
    data = original / "devicemapper/devicemapper/data"
    shutil.copytree(original, copy, ignore=lambda directory, names: {"data"} if directory == str(data.parent) else ())
    with (copy / "devicemapper/devicemapper/data").open("wb") as file:
        file.truncate(data.stat().st_size)
    yield copy
    metadata = copy / "devicemapper/devicemapper/metadata"
    accepted(metadata)
    before, after = mappings_of(original), mappings_of(copy)
    assert {dev_id: before[dev_id] for dev_id in after if dev_id in before} == {
        dev_id: runs for dev_id, runs in after.items() if dev_id in before
    }
