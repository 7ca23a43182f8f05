"""A world of its own for each test, and the real sets where they are."""

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lvm.builder import World, make_world

SETS = Path(__file__).resolve().parents[3] / "shared/data"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture
def changed_world(tmp_path: Path) -> Callable[[Callable[[Any], None]], World]:
    """With something done to the pool."""
    return lambda change: make_world(tmp_path, change)


def _unpacked(name: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Readable by everybody: the ordinary user too."""
    source = SETS / name
    if not source.is_dir():
        pytest.skip(f"{source}: the set is not there")
    directory = tmp_path_factory.mktemp(name)
    subprocess.run(["tar", "xJSf", source / "images.tar.xz", "-C", directory], check=True)
    for line in (source / "images.sha256").read_text().splitlines():
        digest, image = line.split()
        with (directory / image).open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == digest
    return sorted(directory.glob("*.img"))


@pytest.fixture(scope="session")
def proxmox(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return _unpacked("lvm-proxmox", tmp_path_factory)


@pytest.fixture(scope="session")
def two_pvs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return _unpacked("lvm-two-pvs", tmp_path_factory)
