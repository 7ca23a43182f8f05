"""The pool file: what is read is what was written, and what is wrong is one line that names the key."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinfs.dm.table import Feature
from thinfs.errors import BackingMissing, InvalidArgument, ThinfsError
from thinfs.operation.pool_file import (
    PoolFile,
    PoolSpec,
    VolumeSpec,
    format_amount,
    format_pool_file,
    ordered_volumes,
    parse_amount,
    read_pool_file,
)

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
PATHS = NAMES.map(lambda name: "/" + name)
SECTORS = st.integers(1, 1 << 40)


@st.composite
def pool_files(draw: st.DrawFn) -> PoolFile:
    names = iter(draw(st.lists(NAMES, min_size=6, max_size=6, unique=True)))
    pools = []
    for _ in range(draw(st.integers(0, 2))):
        ids = draw(st.lists(st.integers(0, (1 << 24) - 1), max_size=2, unique=True))
        pools.append(
            PoolSpec(
                name=next(names),
                metadata=draw(PATHS),
                data=draw(PATHS),
                metadata_sectors=draw(st.none() | SECTORS),
                data_sectors=draw(st.none() | SECTORS),
                block_sectors=128 * draw(st.integers(1, 16384)),
                low_water_blocks=draw(st.integers(0, 1 << 20)),
                features=tuple(draw(st.lists(st.sampled_from(list(Feature)), max_size=4, unique=True))),
                volumes=tuple(
                    VolumeSpec(
                        next(names), dev_id, draw(SECTORS), external_origin=draw(st.none() | PATHS),
                        read_only=draw(st.booleans()),
                    )
                    for dev_id in ids
                ),
            )
        )  # fmt: skip
    return PoolFile(draw(st.sampled_from(["userspace", "kernel"])), tuple(pools))


@given(pool_files())
def test_what_was_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, file: PoolFile) -> None:
    path = tmp_path_factory.mktemp("pools") / "pools.toml"
    path.write_text(format_pool_file(file))
    assert read_pool_file(str(path)) == file


@given(st.integers(0, 1 << 50))
def test_an_amount_is_read_back(sectors: int) -> None:
    assert parse_amount(format_amount(sectors), "size") == sectors


POOL = '[pool.p]\nmetadata = "/m"\ndata = "/d"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pool.p\n", "Expected"),
        ('backend = "zfs"', "backend = 'zfs'"),
        ('pool = "p"', "pool = 'p': not a dict"),
        ("[pool]\np = 1\n", "pool.p: not a table"),
        ('[pool.p]\nmetadata = "/m"\n', "pool.p: data is missing"),
        ('[pool.p]\nmetadata = "m"\ndata = "/d"', "pool.p.metadata = 'm': not an absolute path"),
        (POOL + 'colour = "red"', "pool.p.colour: no such key"),
        ("colour = 1", "colour: no such key"),
        (POOL + 'data_size = "10 parsecs"', "pool.p.data_size = '10 parsecs'"),
        (POOL + "data_size = 10", "pool.p.data_size = 10: not a str"),
        (POOL + 'data_size = "100B"', "not whole sectors"),
        (POOL + 'block_size = "65KiB"', "pool.p.block_size: a multiple of 64KiB"),
        (POOL + 'features = ["fast"]', "pool.p.features: 'fast'"),
        (POOL + 'features = [["fast"]]', "pool.p.features"),
        (POOL + '[pool.p.volume.v]\nid = true\nsize = "1s"', "pool.p.volume.v.id = True: not a int"),
        (POOL + '[pool.p.volume.v]\nid = -1\nsize = "1s"', "volume.v.id = -1"),
        (POOL + '[pool.p.volume.v]\nid = 1\nsize = "0s"', "volume.v.size"),
        (POOL + '[pool.p.volume.p]\nid = 1\nsize = "1s"', "p: the name of two devices"),
        (
            POOL + '[pool.p.volume.v]\nid = 1\nsize = "1s"\n[pool.p.volume.w]\nid = 1\nsize = "1s"',
            "id 1 is that of two",
        ),
        (POOL + '[pool.p.volume.v]\nid = 1\nsize = "1s"\nsnapshot_of = "x"', "snapshot_of = 'x': no such volume"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "pools.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgument) as refusal:
        read_pool_file(str(path))
    assert str(refusal.value).startswith(f"{path}: ")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_not_there_or_no_text_is_one_line(tmp_path: Path) -> None:
    with pytest.raises((BackingMissing, ThinfsError), match="nowhere"):
        read_pool_file(str(tmp_path / "nowhere"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    with pytest.raises(InvalidArgument, match="binary"):
        read_pool_file(str(tmp_path / "binary"))


def test_snapshots_come_after_their_origins_and_circles_are_refused() -> None:
    one = VolumeSpec("one", 1, 8, snapshot_of="two")
    two = VolumeSpec("two", 2, 8, snapshot_of="three")
    three = VolumeSpec("three", 3, 8)
    assert [volume.name for volume in ordered_volumes([one, two, three])] == ["three", "two", "one"]
    with pytest.raises(InvalidArgument, match="a snapshot of itself"):
        ordered_volumes([VolumeSpec("a", 1, 8, snapshot_of="b"), VolumeSpec("b", 2, 8, snapshot_of="a")])
