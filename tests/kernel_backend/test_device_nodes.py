"""The links in /dev/mapper, and patterns of blocks: what needs no kernel."""

import os
from pathlib import Path

import pytest

from kernel_backend import device_nodes
from kernel_backend.block_io import digest, pattern


def test_a_pattern_depends_on_its_seed_and_differs_between_sectors() -> None:
    data = pattern(7, 4096)
    assert len({data[at : at + 512] for at in range(0, 4096, 512)}) == 8
    assert pattern(7, 1024) == data[:1024]
    assert digest(pattern(8, 4096)) != digest(data)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(device_nodes, "DIRECTORY", str(tmp_path))
    return tmp_path


def test_without_udev_the_link_is_ours_and_replaced_and_withdrawn(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_nodes, "udev_runs", lambda: False)
    device_nodes.publish("a b", 3)
    device_nodes.publish("a b", 4)
    assert os.readlink(directory / r"a\x20b") == "../dm-4"
    device_nodes.withdraw("a b")
    assert list(directory.iterdir()) == []


def test_a_udev_that_makes_no_link_in_time_is_helped_out(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_nodes, "udev_runs", lambda: True)
    monkeypatch.setattr(device_nodes, "_UDEV_PATIENCE_SECONDS", 0.0)
    device_nodes.publish("p", 3)
    assert os.readlink(directory / "p") == "../dm-3"


def test_the_link_that_udev_made_is_left_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_nodes, "udev_runs", lambda: True)
    (directory / "p").symlink_to("/dev/null")
    monkeypatch.setattr(device_nodes, "_dev_of", lambda minor: os.stat("/dev/null").st_rdev)
    device_nodes.publish("p", 3)
    device_nodes.withdraw("p")
    assert os.readlink(directory / "p") == "/dev/null"
