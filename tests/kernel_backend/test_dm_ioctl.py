"""The packing of device-mapper's requests, and the links in /dev/mapper: what needs no kernel."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_backend import device_nodes
from kernel_backend.block_io import digest, pattern
from kernel_backend.dm_ioctl import Answer, pack_table, unpack_table

HEADER_BYTES = 312

words = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1, max_size=15)
lines = st.tuples(
    st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), words, st.lists(words, max_size=8).map(" ".join)
)


@given(st.lists(lines, max_size=4))
def test_a_packed_table_is_read_back_as_the_same_lines(table: list[tuple[int, int, str, str]]) -> None:
    text = "\n".join(" ".join(map(str, line)) for line in table)
    nr_targets, payload = pack_table(text)
    assert len(payload) % 8 == 0
    raw = bytearray(HEADER_BYTES) + payload
    raw[16:20] = HEADER_BYTES.to_bytes(4, "little")
    raw[20:24] = nr_targets.to_bytes(4, "little")
    # a request's `next` counts from the target itself, an answer's from the start of the payload
    at = total = 0
    for _ in range(nr_targets):
        size = int.from_bytes(raw[HEADER_BYTES + at + 20 : HEADER_BYTES + at + 24], "little")
        total += size
        raw[HEADER_BYTES + at + 20 : HEADER_BYTES + at + 24] = total.to_bytes(4, "little")
        at += size
    assert unpack_table(Answer(raw)) == text


@pytest.mark.parametrize("line", ["0 100", "zero 100 linear", "0 -1 linear", "0x0 100 linear"])
def test_a_line_that_is_no_table_is_refused_with_einval(line: str) -> None:
    with pytest.raises(OSError, match="not `start length target params`") as caught:
        pack_table(line)
    assert caught.value.errno == 22


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
