"""The overlay: what is written goes into one file and is there again; what is below stays as it is."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from thinfs.errors import BadMetadata, Busy, InvalidArgument, ThinfsError
from thinfs.lvm.overlay import CHUNK_BYTES, Overlay
from thinfs.lvm.reading import Window

SIZE = 5 * CHUNK_BYTES + 512


class Below:
    """Bytes, as a volume; a hole in the third chunk."""

    label = "vg/lv"

    def __init__(self, seed: int = 0) -> None:
        data = bytearray(Random(seed).randbytes(SIZE))
        data[2 * CHUNK_BYTES : 3 * CHUNK_BYTES] = bytes(CHUNK_BYTES)
        self.data = bytes(data)
        self.size_bytes = SIZE

    def read(self, offset: int, length: int) -> bytes:
        assert offset + length <= SIZE
        return self.data[offset : offset + length]

    def data_ranges(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        for first, last in ((0, 2 * CHUNK_BYTES), (3 * CHUNK_BYTES, SIZE)):
            if max(first, begin) < min(last, end):
                yield max(first, begin), min(last, end)


def test_reads_and_writes_of_any_range_are_as_of_a_plain_device(tmp_path: Path) -> None:
    random, below = Random(1), Below()
    model = bytearray(below.data)
    overlay = Overlay(str(tmp_path / "file"))
    device = overlay.open_volume(below, "key", "state", "label")
    for step in range(400):
        begin = random.randrange(SIZE)
        length = random.choice((1, 511, 512, 4096, CHUNK_BYTES, 3 * CHUNK_BYTES))
        length = min(length, SIZE - begin)
        kind = random.randrange(4)
        if kind == 0:
            data = random.randbytes(length)
            device.write(begin, data)
            model[begin : begin + length] = data
        elif kind == 1:
            device.discard(begin, length)
            first, last = -(-begin // CHUNK_BYTES), (begin + length) // CHUNK_BYTES + (begin + length == SIZE)
            for chunk in range(first, last):
                end = min((chunk + 1) * CHUNK_BYTES, SIZE)
                model[chunk * CHUNK_BYTES : end] = bytes(end - chunk * CHUNK_BYTES)
        else:
            assert device.read(begin, length) == model[begin : begin + length], step
        if step % 50 == 0:
            device.flush()
            overlay.close()
            overlay = Overlay(str(tmp_path / "file"))
            device = overlay.open_volume(below, "key", "state", "label")
        position = 0
        for first, last in [*device.data_ranges(0, SIZE), (SIZE, SIZE)]:
            assert not any(model[position:first])
            position = last
    overlay.close()
    assert below.data == Below().data


def test_what_was_flushed_is_there_after_a_crash_and_what_was_not_is_not_half_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    overlay = Overlay(str(path))
    device = overlay.open_volume(Below(), "key", "state", "label")
    device.write(100, b"flushed")
    device.flush()
    device.write(CHUNK_BYTES + 100, b"not flushed")
    crashed = tmp_path / "crashed"
    crashed.write_bytes(path.read_bytes())
    overlay.close()
    after = Overlay(str(crashed)).open_volume(Below(), "key", "state", "label")
    assert after.read(0, CHUNK_BYTES) == Below().data[:100] + b"flushed" + Below().data[107:CHUNK_BYTES]
    assert after.read(CHUNK_BYTES, CHUNK_BYTES) == Below().data[CHUNK_BYTES : 2 * CHUNK_BYTES]


def test_several_volumes_lie_in_one_file_and_do_not_touch(tmp_path: Path) -> None:
    overlay = Overlay(str(tmp_path / "file"))
    devices = {key: overlay.open_volume(Below(), key, "state", key) for key in ("a", "b")}
    for key, device in devices.items():
        device.write(0, key.encode() * SIZE)
    overlay.close()
    overlay = Overlay(str(tmp_path / "file"))
    devices = {key: overlay.open_volume(Below(), key, "state", key) for key in ("c", "b", "a")}
    assert devices["a"].read(0, SIZE) == b"a" * SIZE
    assert devices["b"].read(0, SIZE) == b"b" * SIZE
    assert devices["c"].read(0, SIZE) == Below().data
    overlay.close()


def test_over_another_state_of_the_disks_it_is_refused(tmp_path: Path) -> None:
    overlay = Overlay(str(tmp_path / "file"))
    overlay.open_volume(Below(), "key", "state", "label")
    overlay.close()
    overlay = Overlay(str(tmp_path / "file"))
    with pytest.raises(InvalidArgument, match="the disks have changed since it was made over vg/lv"):
        overlay.open_volume(Below(), "key", "another state", "label")
    with pytest.raises(InvalidArgument, match="the disks have changed"):
        overlay.open_volume(Window("vg/lv", Below(), 0, SIZE - 512), "key", "state", "label")
    overlay.close()


def test_a_file_that_is_something_else_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for contents in (b"x", b"precious" * 100_000, bytes(1 << 20)):
        path.write_bytes(contents)
        with pytest.raises(BadMetadata, match=f"{path}: not an overlay of thinfs"):
            Overlay(str(path))
        assert path.read_bytes() == contents


def test_a_file_that_another_process_has_is_busy(tmp_path: Path) -> None:
    overlay = Overlay(str(tmp_path / "file"))
    with pytest.raises(Busy, match="in use by another process"):
        Overlay(str(tmp_path / "file"))
    overlay.close()


@pytest.mark.parametrize("path", ["/dev/null", "/nonexistent/file", "/"])
def test_what_cannot_be_an_overlay_is_refused(path: str) -> None:
    with pytest.raises(ThinfsError, match=path):
        Overlay(path)


def test_a_damaged_overlay_is_read_refused_or_as_it_was_before_its_last_change(tmp_path: Path) -> None:
    path = tmp_path / "file"
    overlay = Overlay(str(path))
    for key in ("a", "b", "c"):
        overlay.open_volume(Below(), key, "state", key).write(0, b"x" * 10)
    overlay.close()
    whole = path.read_bytes()
    for seed in range(300):
        random = Random(seed)
        damaged = bytearray(whole)
        for _ in range(random.randrange(1, 4)):
            damaged[random.choice((0, 65536)) + random.randrange(random.choice((24, 400)))] = random.randrange(256)
        path.write_bytes(damaged[: random.choice((len(damaged), 65536, 100_000))])
        try:
            overlay = Overlay(str(path))
        except BadMetadata:
            continue
        with closing(overlay):
            overlay.open_volume(Below(), "a", "state", "a").read(0, SIZE)


def test_holes_stay_holes_in_the_file(tmp_path: Path) -> None:
    overlay = Overlay(str(tmp_path / "file"))
    device = overlay.open_volume(Below(), "key", "state", "label")
    device.write(4 * CHUNK_BYTES, b"x")
    device.discard(0, CHUNK_BYTES)
    overlay.close()
    assert os.stat(tmp_path / "file").st_blocks * 512 < 3 * CHUNK_BYTES
