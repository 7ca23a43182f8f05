"""shrink, migrate, trim and pack: what moves data, gives it back or packs its metadata."""

from pathlib import Path

import pytest

from tests.thin_tools import V1_1_0, VERSIONS, answer
from tests.tools.against_thin_tools import blank
from tests.tools.pools import changing, make_pool, random_pool, write
from thinfs.blockdev import Buffer, FileDevice
from thinfs.cli.main import run
from thinfs.errors import IOFailed, NoSpace
from thinfs.steps import drive
from thinfs.tools.ir import dump_of
from thinfs.tools.shrink import copy_data, counts_of, plan, whole_pool, write_shrunk
from thinfs.tools.walk import PoolTrees

BLOCK = 65536
NR_BLOCKS = 20_000


def content(data_block: int) -> bytes:
    return data_block.to_bytes(8, "little") * 64


def data_of(pool: Path, path: Path) -> Path:
    """A sparse data file, each mapped block begins with its number."""
    device = FileDevice(str(pool), read_only=True)
    blank(path, NR_BLOCKS * BLOCK)
    with path.open("r+b") as file:
        for thin in dump_of(PoolTrees.open(device)).thins:
            for run_ in thin.runs:
                for data_block in range(run_.data_begin, run_.data_begin + run_.length):
                    file.seek(data_block * BLOCK)
                    file.write(content(data_block))
    device.close()
    return path


def volumes(pool: Path, data: Path) -> dict[int, dict[int, bytes]]:
    """What is read of each thin: thin block -> the beginning of its data."""
    device = FileDevice(str(pool), read_only=True)
    found: dict[int, dict[int, bytes]] = {}
    with data.open("rb") as file:
        for thin in dump_of(PoolTrees.open(device)).thins:
            blocks = found[thin.dev_id] = {}
            for run_ in thin.runs:
                for i in range(run_.length):
                    file.seek((run_.data_begin + i) * BLOCK)
                    blocks[run_.thin_begin + i] = file.read(512)
    device.close()
    return found


@pytest.fixture
def moved(tmp_path: Path) -> tuple[Path, Path]:
    """Metadata and data of a pool with shared blocks, some of them far behind."""
    pool = make_pool(tmp_path / "pool")
    with changing(pool) as metadata:
        metadata.create_thin(1)
        write(metadata, 1, *range(500))
        metadata.create_snap(2, 1)
        write(metadata, 2, *range(0, 500, 7))
        thin = metadata.open_thin(1)
        drive(thin.remove_range(100, 300))
        metadata.close_thin(thin)
        metadata.create_snap(3, 2)
    with changing(pool) as metadata:
        drive(metadata.delete_thin(2))
    return pool, data_of(pool, tmp_path / "data")


def test_a_pool_shrinks_to_the_blocks_it_has_in_use_and_no_further(
    moved: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pool, data = moved
    before = volumes(pool, data)
    device = FileDevice(str(pool), read_only=True)
    used = counts_of(dump_of(PoolTrees.open(device))).nr_allocated
    device.close()
    words = ["shrink", "-i", str(pool), "--data", str(data), "-o", str(blank(tmp_path / "new"))]
    assert run([*words, "--nr-blocks", str(used - 1)]) == 1
    assert f"{used} data blocks are in use, they do not fit into {used - 1}" in capfd.readouterr().err
    assert run([*words, "--nr-blocks", str(used)]) == 0
    assert volumes(pool, data) == before  # the old metadata is as good as it was
    with data.open("r+b") as file:
        file.truncate(used * BLOCK)
    assert volumes(tmp_path / "new", data) == before
    for version in VERSIONS:
        assert answer("thin_check", tmp_path / "new", version=version).returncode == 0
    assert run(["check", "-q", str(tmp_path / "new")]) == 0


def test_xml_shrinks_as_with_thin_shrink(moved: tuple[Path, Path], tmp_path: Path) -> None:
    pool, data = moved
    before = volumes(pool, data)
    xml, smaller = tmp_path / "xml", tmp_path / "smaller.xml"
    assert run(["dump", "-o", str(xml), str(pool)]) == 0
    assert run(["shrink", "-i", str(xml), "-o", str(smaller), "--data", str(data), "--nr-blocks", "700"]) == 0
    assert run(["restore", "-i", str(smaller), "-o", str(blank(tmp_path / "new"))]) == 0
    assert volumes(tmp_path / "new", data) == before


class CutDevice:
    """Fails from the `nr`th write on, as a device without power; what was written before is there."""

    def __init__(self, device: FileDevice, writes_left: list[int]) -> None:
        self._device = device
        self._left = writes_left

    label = property(lambda self: self._device.label)
    size_bytes = property(lambda self: self._device.size_bytes)
    supports_discard = False

    def read(self, offset: int, length: int) -> bytes:
        return self._device.read(offset, length)

    def write(self, offset: int, data: Buffer) -> None:
        if not self._left[0]:
            raise IOFailed("no power")
        self._left[0] -= 1
        self._device.write(offset, data)

    def flush(self) -> None:
        self._device.flush()

    def discard(self, offset: int, length: int) -> None:
        raise AssertionError

    def close(self) -> None:
        self._device.close()


def test_a_shrink_cut_at_any_write_loses_nothing(
    moved: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinfs.tools.shrink._COPY_BYTES", 4 * BLOCK)
    monkeypatch.setattr("thinfs.tools.node_writer._WRITE_BYTES", 4096)
    pool, data = moved
    before = volumes(pool, data)
    cuts = 0
    while True:
        new = blank(tmp_path / "new", 1 << 20)
        metadata, devices = FileDevice(str(pool), read_only=True), (FileDevice(str(data)), FileDevice(str(new)))
        left = [cuts]
        try:
            trees = PoolTrees.open(metadata)
            salvage, moves = whole_pool(trees), plan(counts_of(dump_of(trees)), 544)
            copy_data(moves, CutDevice(devices[0], left), 128, lambda nr: None)
            write_shrunk(trees, salvage, moves, 544, CutDevice(devices[1], left))
            break
        except IOFailed:
            cuts += 1
        finally:
            for device in (metadata, *devices):
                device.close()
        assert volumes(pool, data) == before
        # Either no pool yet, or the whole of it.
        if run(["check", "-q", str(new)]) == 0:
            assert volumes(new, data) == before
    assert cuts > 5
    assert volumes(new, data) == volumes(pool, data) == before


def test_a_metadata_snapshot_that_is_held_forbids_to_shrink(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pool = random_pool(tmp_path / "pool", 1, metadata_snapshot=True)
    data = blank(tmp_path / "data", NR_BLOCKS * BLOCK)
    words = ["shrink", "-i", str(pool), "-o", str(blank(tmp_path / "new")), "--data", str(data), "--nr-blocks", "15000"]
    assert run(words) == 1
    assert "a metadata snapshot is held" in capfd.readouterr().err


def test_plan_refuses_to_grow() -> None:
    from thinfs.errors import InvalidArgument
    from thinfs.tools.ref_counts import RefCounts

    counts = RefCounts(10)
    for block in (0, 1, 8):
        counts.inc(block)
    with pytest.raises(InvalidArgument):
        plan(counts, 11)
    with pytest.raises(NoSpace):
        plan(counts, 2)
    assert [tuple(move) for move in plan(counts, 3).moves] == [(8, 2, 1)]


def test_a_thin_is_migrated_whole_and_then_by_what_changed(moved: tuple[Path, Path], tmp_path: Path) -> None:
    pool, data = moved
    with data.open("rb") as file:

        def expected(dev_id: int) -> bytes:
            device = FileDevice(str(pool), read_only=True)
            image = bytearray(500 * BLOCK)
            for thin in dump_of(PoolTrees.open(device)).thins:
                for one in thin.runs if thin.dev_id == dev_id else ():
                    file.seek(one.data_begin * BLOCK)
                    begin = one.thin_begin * BLOCK
                    image[begin : begin + one.length * BLOCK] = file.read(one.length * BLOCK)
            device.close()
            return bytes(image)

        target = tmp_path / "image"
        words = ["migrate", "--metadata-dev", str(pool), "--data-dev", str(data), "--dest-file", str(target)]
        assert run([*words, "--thin", "1", "--size", str(500 * BLOCK)]) == 0
        assert target.read_bytes() == expected(1)
        assert run([*words, "--thin", "3"]) == 1  # it exists
        assert run([*words, "--thin", "3", "--delta-from", "1"]) == 0
        assert target.read_bytes() == expected(3)
        target.unlink()
        assert run([*words, "--thin", "9"]) == 1
        assert not target.exists()
        other = blank(tmp_path / "device", 510 * BLOCK)
        other.write_bytes(b"\xff" * (510 * BLOCK))
        assert run([*words[:5], "--dest-dev", str(other), "--thin", "1"]) == 0
        assert other.read_bytes() == expected(1) + bytes(10 * BLOCK)


def test_free_blocks_are_given_back_and_no_others(moved: tuple[Path, Path]) -> None:
    pool, data = moved
    before = volumes(pool, data)
    with data.open("r+b") as file:
        for data_block in range(1000, 1200):
            file.seek(data_block * BLOCK)
            file.write(b"\xff" * BLOCK)
    used = data.stat().st_blocks
    assert run(["trim", "--metadata-dev", str(pool), "--data-dev", str(data)]) == 0
    assert data.stat().st_blocks <= used - 199 * BLOCK // 512
    assert volumes(pool, data) == before


def test_damaged_metadata_trims_nothing(moved: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    pool, data = moved
    with changing(pool) as metadata:
        metadata.dec_data_blocks(7, 8)
    used = data.stat().st_blocks
    assert run(["trim", "--metadata-dev", str(pool), "--data-dev", str(data)]) == 1
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert data.stat().st_blocks == used


def test_packed_metadata_goes_to_and_fro_with_thin_metadata_pack(pool: Path, tmp_path: Path) -> None:
    ours, theirs, unpacked = tmp_path / "ours", tmp_path / "theirs", tmp_path / "unpacked"
    assert run(["pack", "-i", str(pool), "-o", str(ours)]) == 0
    assert answer("thin_metadata_unpack", "-i", ours, "-o", unpacked, version=V1_1_0).returncode == 0
    assert unpacked.read_bytes() == pool.read_bytes()
    assert answer("thin_metadata_pack", "-i", pool, "-o", theirs, version=V1_1_0).returncode == 0
    unpacked.unlink()
    assert run(["unpack", "-i", str(theirs), "-o", str(unpacked)]) == 0
    assert run(["check", "-q", str(unpacked)]) == 0
    assert run(["unpack", "-f", "-i", str(ours), "-o", str(unpacked)]) == 0
    assert unpacked.read_bytes() == pool.read_bytes()


def test_what_was_not_packed_whole_is_refused_and_nothing_is_left(
    held: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    packed, target = tmp_path / "packed", tmp_path / "target"
    assert run(["pack", "-i", str(held), "-o", str(packed)]) == 0
    whole = packed.read_bytes()
    for text in (b"", b"nonsense" * 100, whole[:20], whole[:-1], whole[:500] + b"\0" + whole[501:], whole + b"more"):
        packed.write_bytes(text)
        assert run(["unpack", "-i", str(packed), "-o", str(target)]) == 1
        assert len(capfd.readouterr().err.splitlines()) == 1
        assert not target.exists()
