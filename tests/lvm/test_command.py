"""`thinfs lvm` as it is run: what it prints, its exit status, what it leaves; also by an ordinary user."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lvm.builder import World, lv_section

TOP = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


def run(*words: str, user: str | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(TOP), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "thinfs.cli.main", "lvm", *words]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, env=environment, cwd=cwd or "/", timeout=120, user=user,
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line."""
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


def test_a_listing_names_disks_groups_pools_and_volumes(world: World, tmp_path: Path) -> None:
    paths = world.write(tmp_path)
    done = run(*paths, "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{paths[0]}: 2.6 MiB, no partition table",
        f"  {paths[0]}: 2.6 MiB, PV aaaaaa-0000-0000-0000-0000-0000-aaaaaa",
        f"{paths[1]}: 2.6 MiB, no partition table",
        f"  {paths[1]}: 2.6 MiB, PV bbbbbb-1111-1111-1111-1111-1111-bbbbbb",
        "VG vg (cccccc-2222-2222-2222-2222-2222-cccccc): seqno 7, extents of 64 KiB, 2 of 2 PVs",
        "pool vg/pool: 512 KiB used of 1 MiB, blocks of 64 KiB, transaction 3",
        "VOLUME     TYPE        SIZE     USED  ACCESS  CONTENTS",
        "vg/thick   linear   256 KiB        -  ro      -",
        "vg/wide    striped  512 KiB        -  rw      -",
        "vg/ro-one  linear    64 KiB        -  ro      -",
        "vg/one     thin     640 KiB  256 KiB  rw      -",
        "vg/two     thin     640 KiB  320 KiB  rw      -",
        "vg/guest   thin     384 KiB  128 KiB  rw      -",
    ]


def test_a_listing_says_what_cannot_be_opened_and_why(world: World, tmp_path: Path) -> None:
    world.lvs["mirrored"] = lv_section({"start_extent": 0, "extent_count": 4, "type": "raid1", "raids": ["ro-one"]})
    world.lvs["old"] = lv_section({"start_extent": 0, "extent_count": 4, "type": "vdo", "vdo_pool": "x"})
    world.pool["transaction_id"] = 2
    out = run(*world.write(tmp_path), "list").stdout
    assert "vg/mirrored  raid1    256 KiB     -  rw      cannot be opened" in out
    assert "problem: VG vg/mirrored: raid1: volumes of this type are not read" in out
    assert "problem: VG vg/old: vdo: volumes of this type are not read" in out
    assert "problem: VG vg/ro-one: a part of mirrored (raid1), no volume by itself" in out
    assert "pool vg/pool: not opened of 1 MiB" in out
    assert out.count("transaction_id is 3, while expected 2") == 1


def test_what_a_volume_holds_is_named(world: World, tmp_path: Path) -> None:
    world.disks["pv0"].data[world.disks["pv0"].extents(0) : world.disks["pv0"].extents(0) + 6] = b"LUKS\xba\xbe"
    out = run(*world.write(tmp_path), "list").stdout
    assert "vg/thick   linear   256 KiB        -  ro      LUKS (encrypted)" in out


def test_a_listing_as_json_has_the_same_facts(world: World, tmp_path: Path) -> None:
    document = json.loads(run(*world.write(tmp_path), "list", "--json").stdout)
    assert [volume["name"] for volume in document["volumes"] if volume["visible"]] == list(world.contents)
    assert document["pools"][0]["transaction_id"] == 3
    assert document["groups"][0]["seqno"] == 7
    assert document["problems"] == []


def test_a_check_of_sound_disks_passes(world: World, tmp_path: Path) -> None:
    done = run(*world.write(tmp_path), "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert "vg/pool: sound, transaction 3\n" in done.stdout
    assert done.stdout.count("sound") == 10


@pytest.mark.parametrize("kind", ["half", "needs check", "transaction"])
def test_a_check_of_others_fails_in_a_line_each(changed_world: Callable[..., World], tmp_path: Path, kind: str) -> None:
    world = changed_world(lambda metadata: metadata.set_needs_check() if kind == "needs check" else None)
    if kind == "transaction":
        world.pool["transaction_id"] = 9
    paths = world.write(tmp_path)
    done = run(*paths[: 1 if kind == "half" else 2], "check")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert {"half": "on none of the images", "needs check": "needs_check", "transaction": "while expected"}[
        kind
    ] in line


def test_a_volume_is_exported_whole_and_sparse_and_the_disks_stay_as_they_were(world: World, tmp_path: Path) -> None:
    paths = world.write(tmp_path)
    before = [hashlib.sha256(Path(path).read_bytes()).digest() for path in paths]
    for name, contents in world.contents.items():
        target = tmp_path / name.replace("/", "-")
        done = run(*paths, "export", name, str(target))
        assert (done.returncode, done.stderr) == (0, "")
        assert target.read_bytes() == contents
    assert (tmp_path / "vg-one").stat().st_blocks * 512 == 4 * 65536
    assert [hashlib.sha256(Path(path).read_bytes()).digest() for path in paths] == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_volume_is_exported_to_standard_output(world: World, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "thinfs.cli.main", "lvm", *world.write(tmp_path), "export", "vg/two", "-"]
    done = subprocess.run(command, capture_output=True, cwd=TOP, timeout=120)
    assert (done.returncode, done.stdout) == (0, world.contents["vg/two"])


def test_a_file_that_exists_is_replaced_only_when_asked_for_and_a_disk_never(world: World, tmp_path: Path) -> None:
    paths, target = world.write(tmp_path), tmp_path / "target"
    target.write_bytes(b"precious")
    line = refused(run(*paths, "export", "vg/one", str(target)))
    assert line == f"thinfs lvm export: {target}: exists already; --force replaces it"
    assert target.read_bytes() == b"precious"
    assert "one of the disks" in refused(run(*paths, "export", "vg/one", paths[1], "--force"))
    assert "a directory" in refused(run(*paths, "export", "vg/one", str(tmp_path), "--force"))
    assert run(*paths, "export", "vg/one", str(target), "--force").returncode == 0
    assert target.read_bytes() == world.contents["vg/one"]


def test_an_export_that_fails_leaves_nothing(world: World, tmp_path: Path) -> None:
    paths, target = world.write(tmp_path)[:1], tmp_path / "out" / "target"
    target.parent.mkdir()
    assert "on none of the images" in refused(run(*paths, "export", "vg/one", str(target)))
    assert "No such file or directory" in refused(run(*paths, "export", "vg/thick", f"{tmp_path}/no/target"))
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["/nonexistent", "list"], "thinfs lvm list: /nonexistent: no such file or device"),
        (["/dev/null", "check"], "thinfs lvm check: /dev/null: neither a regular file nor a block device"),
        (["list"], "thinfs lvm list: no IMAGE before it"),
        (["PV0", "PV0", "list"], "thinfs lvm list: PV0: given twice"),
        (
            ["PV0", "PV1", "export", "nothing", "/tmp/x"],
            "thinfs lvm export: nothing: no such volume; there are ",
        ),
        (["PV0", "PV1", "export", "vg/pool", "/tmp/x"], "thinfs lvm export: VG vg/pool: a thin pool, no volume"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(world: World, tmp_path: Path, words: list[str], line: str) -> None:
    paths = world.write(tmp_path)
    words = [word.replace("PV0", paths[0]).replace("PV1", paths[1]) for word in words]
    assert refused(run(*words)).startswith(line.replace("PV0", paths[0]))


@pytest.mark.parametrize("nr_bytes", [0, 1, 511, 512, 4096, 1 << 20])
def test_an_image_without_lvm_is_refused(tmp_path: Path, nr_bytes: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(nr_bytes))
    done = run(str(path), "list")
    assert (done.returncode, done.stderr) == (1, f"thinfs lvm list: no volume group on {path}\n")
    assert f"no volume group on {path}" in refused(run(str(path), "check"))


def test_words_that_are_no_command_are_a_usage_error(tmp_path: Path) -> None:
    for words in ([], ["x"], ["x", "y"], ["x", "list", "--nonsense"], ["x", "export"]):
        done = run(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("usage: thinfs lvm IMAGE")


def test_an_image_may_be_called_as_a_command_is(world: World, tmp_path: Path) -> None:
    paths = world.write(tmp_path)
    Path(paths[0]).rename(tmp_path / "list")
    Path(paths[1]).rename(tmp_path / "check")
    assert run("./list", "./check", "check", cwd=tmp_path).returncode == 0


@pytest.fixture
def nobodys(world: World) -> Iterator[tuple[list[str], Path]]:
    """The disks, root's, which everybody may read; and a directory of nobody's beside them."""
    if os.geteuid() != 0:
        pytest.skip("needs root: becomes another user")
    with tempfile.TemporaryDirectory(prefix="thinfs-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        paths = world.write(directory)
        for path in paths:
            os.chmod(path, 0o444)
        out = directory / "out"
        out.mkdir()
        shutil.chown(out, "nobody")
        yield paths, out


def test_an_ordinary_user_does_all_of_it_with_disks_that_he_may_only_read(
    world: World, nobodys: tuple[list[str], Path]
) -> None:
    paths, out = nobodys
    assert "vg/one" in run(*paths, "list", user="nobody").stdout
    assert run(*paths, "check", user="nobody").returncode == 0
    for name, contents in world.contents.items():
        target = out / name.replace("/", "-")
        assert run(*paths, "export", name, str(target), user="nobody").returncode == 0
        assert target.read_bytes() == contents
    os.chmod(paths[1], 0o000)
    assert refused(run(*paths, "check", user="nobody")) == f"thinfs lvm check: {paths[1]}: Permission denied"
