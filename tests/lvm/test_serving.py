"""`thinfs lvm … serve`: the volumes as files of a server, read-only or over an overlay; the disks stay as they are."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import TOP, Machine, machine, mounted
from tests.fuse.conftest import as_nobody
from tests.lvm.builder import World, lv_section
from tests.lvm.reading import read_all, sums_of
from tests.lvm.test_real_sets import digests, real, sums
from thinfs.lvm.opening import open_volumes

__all__ = ["machine", "mounted", "real"]


def succeeded(machine: Machine, *words: str) -> str:
    done = machine.thinfs("lvm", *words)
    assert done.returncode == 0, done.stdout + machine.log()
    return done.stdout


def test_every_volume_is_a_file_that_cannot_be_written(mounted: Machine, world: World, tmp_path: Path) -> None:
    paths = world.write(tmp_path)
    before = digests([Path(path) for path in paths])
    said = succeeded(mounted, *paths, "serve")
    names = {name: name.replace("ro-one", "ro--one").replace("/", "-") for name in world.contents}
    assert said.splitlines() == [f"{name}: {mounted.mount_dir}/{file}" for name, file in names.items()]
    for name, file in names.items():
        assert (mounted.mount_dir / file).read_bytes() == world.contents[name]
        with pytest.raises(OSError, match=r"Read-only file system|Permission denied"):
            (mounted.mount_dir / file).open("r+b")
    assert mounted.prints("table", "vg-one") == "0 1280 linear lvm:vg/one 0\n"
    assert mounted.prints("info", "-c", "--noheadings", "-o", "uuid,attr", "vg-one") == (
        "LVM-cccccc22222222222222222222ccccccdddddd33333333333333333333000005:L--r\n"
    )
    assert mounted.thinfs("stop").returncode == 0
    assert digests([Path(path) for path in paths]) == before


def test_paths_may_be_relative(mounted: Machine, world: World, tmp_path: Path) -> None:
    """The server leaves the directory that it was started in."""
    words = [os.path.basename(path) for path in world.write(tmp_path)]
    assert mounted.mount_dir.parent == tmp_path  # where commands are run
    succeeded(mounted, *words, "serve", "one", "--overlay", "overlay")
    assert (mounted.mount_dir / "vg-one").read_bytes() == world.contents["vg/one"]
    assert (tmp_path / "overlay").exists()


def test_holes_of_a_volume_are_holes_of_its_file(mounted: Machine, world: World, tmp_path: Path) -> None:
    succeeded(mounted, *world.write(tmp_path), "serve", "vg/one")
    with (mounted.mount_dir / "vg-one").open("rb") as file:
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 3 * 65536
        assert os.lseek(file.fileno(), 3 * 65536, os.SEEK_DATA) == 7 * 65536
        assert os.lseek(file.fileno(), 7 * 65536, os.SEEK_HOLE) == 8 * 65536
        with pytest.raises(OSError, match="No such device or address"):
            os.lseek(file.fileno(), 8 * 65536, os.SEEK_DATA)


def test_other_tables_of_the_server_may_stand_on_a_volume(mounted: Machine, world: World, tmp_path: Path) -> None:
    succeeded(mounted, *world.write(tmp_path), "serve", "one")
    mounted.prints("create", "-r", "window", "--table", "0 128 linear /dev/mapper/vg-one 128")
    assert (mounted.mount_dir / "window").read_bytes() == world.contents["vg/one"][65536 : 2 * 65536]


def test_what_cannot_be_opened_is_named_and_the_rest_is_served(mounted: Machine, world: World, tmp_path: Path) -> None:
    world.lvs["mirrored"] = lv_section({"start_extent": 0, "extent_count": 4, "type": "raid1"}, number=30)
    said = succeeded(mounted, world.write(tmp_path)[0], "serve")
    assert "thinfs lvm serve: not served: VG vg/mirrored: raid1: volumes of this type are not read\n" in said
    assert said.count("(pv1) is on none of the images") == 1
    assert sorted(os.listdir(mounted.mount_dir)) == ["vg-ro--one", "vg-thick"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["serve", "vg/one"], "VG vg: PV bbbbbb-1111-1111-1111-1111-1111-bbbbbb (pv1) is on none of the images"),
        (["serve", "nothing"], "nothing: no such volume"),
        (["serve", "--overlay", "/nonexistent/file"], "/nonexistent/file: No such file or directory"),
        (["serve", "--overlay", "PV0"], "PV0: it is one of the disks that are read"),
    ],
)
def test_what_was_asked_for_and_cannot_be_served_is_refused(
    mounted: Machine, world: World, tmp_path: Path, words: list[str], line: str
) -> None:
    path = world.write(tmp_path)[0]
    done = mounted.thinfs("lvm", path, *(word.replace("PV0", path) for word in words))
    assert done.returncode == 1
    (*_, last) = done.stdout.splitlines()
    assert last.startswith("thinfs lvm serve: " + line.replace("PV0", path))
    assert mounted.thinfs("stop").returncode == 1


def test_disks_without_anything_to_serve_are_refused(mounted: Machine, tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(bytes(1 << 20))
    done = mounted.thinfs("lvm", str(path), "serve")
    assert (done.returncode, done.stdout) == (1, f"thinfs lvm serve: no volume group on {path}\n")


def test_an_overlay_takes_what_is_written_and_gives_it_again(mounted: Machine, world: World, tmp_path: Path) -> None:
    paths = world.write(tmp_path)
    before, overlay = digests([Path(path) for path in paths]), str(tmp_path / "overlay")
    expected = {name: bytearray(data) for name, data in world.contents.items()}
    for number in range(2):
        succeeded(mounted, *paths, "serve", "--overlay", overlay)
        for name, data in expected.items():
            path = mounted.mount_dir / name.replace("ro-one", "ro--one").replace("/", "-")
            assert path.read_bytes() == data
            with path.open("r+b") as file:
                file.seek(60_000 + number * 4096)
                file.write(name.encode())
                os.fsync(file.fileno())
            data[60_000 + number * 4096 : 60_000 + number * 4096 + len(name)] = name.encode()
        assert mounted.thinfs("stop").returncode == 0
    assert digests([Path(path) for path in paths]) == before


def test_an_overlay_over_a_pool_that_has_changed_since_is_refused(
    mounted: Machine, world: World, tmp_path: Path
) -> None:
    from tests.lvm.builder import make_world

    paths, overlay = world.write(tmp_path), str(tmp_path / "overlay")
    succeeded(mounted, *paths, "serve", "one", "--overlay", overlay)
    assert mounted.thinfs("stop").returncode == 0
    make_world(tmp_path, lambda metadata: metadata.create_thin(9)).write(tmp_path)
    done = mounted.thinfs("lvm", *paths, "serve", "one", "--overlay", overlay)
    assert done.returncode == 1
    assert done.stdout == f"thinfs lvm serve: {overlay}: the disks have changed since it was made over vg/one\n"


# -- written to the disks


def write_through(mounted: Machine, file: str, offset: int, data: bytes) -> None:
    with (mounted.mount_dir / file).open("r+b") as image:
        image.seek(offset)
        image.write(data)
        os.fsync(image.fileno())


def test_what_is_written_to_the_disks_is_in_its_volume_and_nowhere_else(
    mounted: Machine, world: World, tmp_path: Path
) -> None:
    paths = world.write(tmp_path)
    before = [Path(path).read_bytes() for path in paths]
    succeeded(mounted, *paths, "serve", "--rw")
    expected = {name: bytearray(data) for name, data in world.contents.items()}
    for name in ("vg/wide", "vg/one", "vg/two", "vg/guest"):
        write_through(mounted, name.replace("/", "-"), 65_000, name.encode() * 200)
        expected[name][65_000 : 65_000 + 200 * len(name)] = name.encode() * 200
    for name in ("vg-ro--one", "vg-thick"):  # by its permission; as an external origin
        with pytest.raises(OSError, match=r"Read-only file system|Permission denied"):
            (mounted.mount_dir / name).open("r+b")
    assert mounted.thinfs("stop").returncode == 0
    read = read_all(paths)
    assert read.contents == expected
    assert (read.problems, read.doubts) == ((), [])
    for path, old in zip(paths, before, strict=True):
        assert Path(path).read_bytes()[:65536] == old[:65536]  # label and text


def test_the_pool_is_loaded_as_lvm_loads_it_and_keeps_its_transaction(
    mounted: Machine, world: World, tmp_path: Path
) -> None:
    world.pool["discards"] = "nopassdown"
    del world.pool["zero_new_blocks"]
    world.lvs["pool"]["flags"] = ["ERROR_WHEN_FULL"]
    paths = world.write(tmp_path)
    succeeded(mounted, *paths, "serve", "guest", "--rw")
    assert mounted.prints("table", "vg-pool-tpool").startswith(
        "0 2048 thin-pool lvm:vg/pool_tmeta lvm:vg/pool_tdata 128 0 3 skip_block_zeroing "
    )
    status = mounted.prints("status", "vg-pool-tpool").split()
    assert (status[3], status[7]) == ("3", "rw")
    assert "no_discard_passdown" in status
    assert "error_if_no_space" in status
    assert sorted(os.listdir(mounted.mount_dir)) == ["vg-guest", "vg-pool-tpool", "vg-thick-real"]
    write_through(mounted, "vg-guest", 3 * 65536, b"new block")
    assert mounted.thinfs("stop").returncode == 0
    tmeta = tmp_path / "exported-tmeta"
    assert mounted.thinfs("lvm", *paths, "export", "pool_tmeta", str(tmeta)).returncode == 0
    subprocess.run(["/usr/sbin/thin_check", "-q", tmeta], check=True)
    read = read_all(paths)
    assert (
        read.contents["vg/guest"][3 * 65536 : 4 * 65536] == b"new block" + world.contents["vg/thick"][3 * 65536 + 9 :]
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda world: world.vg["status"].append("EXPORTED"), "VG vg: exported"),
        (lambda world: world.vg.update(system_id="other"), "VG vg: belongs to system 'other'"),
        (lambda world: world.pool.update(message1={"delete": 9}), "pool vg/pool: a message is pending"),
        (
            lambda world: world.pool.update(message1={"delete": 9}, transaction_id=4),
            "pool vg/pool: a message is pending",
        ),
        (lambda world: world.lvs["thick"]["segment1"].update(thin_pool="pool"), None),
        (
            lambda world: world.lvs["guest"]["segment1"].update(external_origin="two"),
            "VG vg/guest: its external origin",
        ),
    ],
)
def test_writing_is_refused_where_the_text_makes_it_unsafe(
    mounted: Machine, world: World, tmp_path: Path, change: Callable[[World], None], line: str | None
) -> None:
    change(world)
    done = mounted.thinfs("lvm", *world.write(tmp_path), "serve", "guest", "--rw")
    if line is None:
        assert done.returncode == 0
    else:
        assert done.returncode == 1
        assert done.stdout.startswith(f"thinfs lvm serve: not to be written: {line}")
        assert len(done.stdout.splitlines()) == 1


def test_writing_is_refused_with_a_disk_missing_or_an_area_stale_or_damaged(
    mounted: Machine, world: World, tmp_path: Path
) -> None:
    paths = world.write(tmp_path)
    assert "(pv1) is on none of the images" in mounted.thinfs("lvm", paths[0], "serve", "thick", "--rw").stdout
    world.disks["pv0"].write_area(0, world.raw_text().replace(b"seqno = 7", b"seqno = 6"))
    world.store(tmp_path)
    assert "not to be written: " in mounted.thinfs("lvm", *paths, "serve", "thick", "--rw").stdout
    world.disks["pv0"].data[4096 + 77] ^= 1
    world.store(tmp_path)
    assert "checksum" in mounted.thinfs("lvm", *paths, "serve", "thick", "--rw").stdout
    assert mounted.thinfs("stop").returncode == 1


@pytest.mark.parametrize("kind", ["needs_check", "leaf"])
def test_writing_is_refused_where_the_pool_makes_it_unsafe(
    mounted: Machine, changed_world: Callable[..., World], tmp_path: Path, kind: str
) -> None:
    def damage(metadata: Any) -> None:
        if kind == "needs_check":
            metadata.set_needs_check()
        else:  # a block that is mapped and not counted
            thin = metadata.open_thin(2)
            thin.insert_block(9, 15)
            metadata.close_thin(thin)

    paths = changed_world(damage).write(tmp_path)
    done = mounted.thinfs("lvm", *paths, "serve", "one", "--rw")
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 1)
    assert done.stdout.startswith("thinfs lvm serve: not to be written: pool vg/pool: ")
    assert mounted.thinfs("lvm", *paths, "serve", "one").returncode == 0


def test_an_overlay_and_the_disks_themselves_are_not_written_at_once(mounted: Machine, tmp_path: Path) -> None:
    done = mounted.thinfs("lvm", "x", "serve", "--rw", "--overlay", "y")
    assert (done.returncode, "not allowed with argument" in done.stdout) == (2, True)


# -- the real sets


def test_every_file_served_from_a_real_set_is_as_the_kernel_showed_it(
    mounted: Machine, real: tuple[str, list[Path]]
) -> None:
    name, paths = real
    before = digests(paths)
    succeeded(mounted, *map(str, paths), "serve")
    found = {}
    for volume in sums(name):
        vg, lv = volume.split("/")
        with (mounted.mount_dir / f"{vg}-{lv.replace('-', '--')}").open("rb") as file:
            found[volume] = hashlib.file_digest(file, "sha256").hexdigest()
    assert found == sums(name)
    assert mounted.thinfs("stop").returncode == 0
    assert digests(paths) == before


def test_a_real_pool_is_written_and_its_other_volumes_stay_as_they_were(
    mounted: Machine, two_pvs: list[Path], tmp_path: Path
) -> None:
    paths = []
    for path in two_pvs:
        paths.append(tmp_path / path.name)
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", path, paths[-1]], check=True)
    words = [str(path) for path in paths]
    succeeded(mounted, *words, "serve", "--rw")
    write_through(mounted, "nas-share", 70 << 20, b"x" * (1 << 20))
    write_through(mounted, "nas-guest1", 12345, b"guest")
    assert mounted.thinfs("stop").returncode == 0
    assert succeeded(mounted, *words, "check").count("sound") == 11
    found = sums_of(words)
    changed = {name for name, digest in sums("lvm-two-pvs").items() if found[name] != digest}
    assert changed == {"nas/share", "nas/guest1"}
    with open_volumes(words) as (volumes, _):
        assert volumes.open(volumes.find("nas/share")).read(70 << 20, 1 << 20) == b"x" * (1 << 20)


@pytest.fixture
def nobodys() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="thinfs-test-") as name:
        shutil.chown(name, "nobody")
        yield Path(name)


def ordinary(directory: Path) -> Callable[..., str]:
    """Runs a command as nobody, with a server in `directory`."""
    prefix = as_nobody()
    environment = {**os.environ, "THINFS_MOUNT": f"{directory}/dm", "PYTHONPATH": str(TOP)}

    def run(*words: str) -> str:
        return subprocess.run(
            [*prefix, *words], capture_output=True, text=True, check=True, env=environment, cwd="/", timeout=120
        ).stdout

    return run


THINFS = (sys.executable, "-m", "thinfs.cli.main")


def test_an_ordinary_user_serves_disks_that_he_may_only_read(world: World, nobodys: Path) -> None:
    run, paths = ordinary(nobodys), world.write(nobodys)
    for path in paths:
        os.chmod(path, 0o444)
    for more in ([], ["--overlay", f"{nobodys}/overlay"]):
        run(*THINFS, "lvm", *paths, "serve", *more)
        try:
            for name, contents in world.contents.items():
                file = f"{nobodys}/dm/{name.replace('ro-one', 'ro--one').replace('/', '-')}"
                assert run("sha256sum", file).split()[0] == hashlib.sha256(contents).hexdigest()
        finally:
            run(*THINFS, "stop")


def test_an_ordinary_user_lists_checks_and_serves_a_real_set(real: tuple[str, list[Path]], nobodys: Path) -> None:
    run, (name, images) = ordinary(nobodys), real
    paths = [f"{nobodys}/{image.name}" for image in images]
    for image, path in zip(images, paths, strict=True):
        subprocess.run(["cp", "--sparse=always", "--reflink=auto", image, path], check=True)
        os.chmod(path, 0o444)
    assert "problem" not in run(*THINFS, "lvm", *paths, "list", "--all")
    assert run(*THINFS, "lvm", *paths, "check").count("sound") > 10
    run(*THINFS, "lvm", *paths, "serve")
    try:
        for volume, digest in sums(name).items():
            vg, lv = volume.split("/")
            assert run("sha256sum", f"{nobodys}/dm/{vg}-{lv.replace('-', '--')}").split()[0] == digest
    finally:
        run(*THINFS, "stop")
