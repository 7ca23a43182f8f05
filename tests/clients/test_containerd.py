"""containerd's devmapper snapshotter, Debian's package unmodified, with the drop-in for its dmsetup."""

from pathlib import Path

import pytest

from tests.clients.conftest import MIB, Volumes, need, need_block_devices, run
from tests.clients.containerd import Containerd, program, running
from tests.clients.oci_image import LAYERS, REFERENCE, write_image


@pytest.fixture(autouse=True)
def containerd_can_run() -> None:
    if program("containerd") is None or program("ctr") is None:
        pytest.skip("containerd is neither installed nor unpacked in .cache by the set-up")
    need("mkfs.ext4", "blkdiscard")
    need_block_devices()


def import_image(containerd: Containerd) -> str:
    """The chain id of its top layer: the key of a committed snapshot."""
    image = containerd.volumes.directory / "image.tar"
    if not image.exists():
        write_image(image)
    containerd.ctr("images", "import", "--snapshotter", "devmapper", image)
    keys = containerd.keys()
    parents = {parent for parent, _ in keys.values()}
    (top,) = (key for key in keys if key not in parents)
    assert len(keys) == len(LAYERS)
    return top


def mount(containerd: Containerd, key: str) -> Path:
    """As `ctr snapshots mounts` says it: a mount command on a line."""
    target = containerd.volumes.directory / f"on-{key}"
    target.mkdir()
    for line in containerd.snapshots("mounts", str(target), key).splitlines():
        run(*line.removesuffix(" -o ").split())  # an option with nothing after it, where there are no options
    return target


def unmount(directory: Path) -> None:
    run("umount", str(directory))
    directory.rmdir()


def make_ten_snapshots(containerd: Containerd, top: str) -> None:
    """layer-1 .. layer-5, each committed on the one before and with a file more; five active ones beside them."""
    parent = top
    for number in range(1, 6):
        key = f"active-{number}"
        containerd.snapshots("prepare", key, parent)
        directory = mount(containerd, key)
        assert (directory / "etc/motd").read_bytes() == LAYERS[-1]["etc/motd"]
        (directory / f"file-{number}").write_bytes(bytes([number]) * MIB)
        unmount(directory)
        containerd.snapshots("commit", f"layer-{number}", key)
        parent = f"layer-{number}"
    for number in range(1, 6):
        containerd.snapshots("prepare", f"work-{number}", f"layer-{number}")


def check_snapshots(containerd: Containerd) -> None:
    for number in range(1, 6):
        directory = mount(containerd, f"work-{number}")
        present = sorted(path.name for path in directory.glob("file-*"))
        assert present == [f"file-{n}" for n in range(1, number + 1)]
        assert all((directory / f"file-{n}").read_bytes() == bytes([n]) * MIB for n in range(1, number + 1))
        unmount(directory)
    containerd.snapshots("view", "look", "layer-3")
    directory = mount(containerd, "look")
    assert sorted(path.name for path in directory.glob("file-*")) == ["file-1", "file-2", "file-3"]
    with pytest.raises(OSError, match="Read-only file system"):
        (directory / "no").touch()
    unmount(directory)
    containerd.snapshots("rm", "look")


@pytest.mark.parametrize(("async_remove", "discard_blocks"), [(False, False), (False, True), (True, False)])
def test_an_image_and_ten_snapshots_live_through_restarts_and_go(
    volumes: Volumes, async_remove: bool, discard_blocks: bool
) -> None:
    with running(volumes, async_remove=async_remove, discard_blocks=discard_blocks) as containerd:
        top = import_image(containerd)
        assert REFERENCE in containerd.ctr("images", "ls", "-q")
        make_ten_snapshots(containerd, top)
        check_snapshots(containerd)
        before = containerd.keys()
    with running(volumes, async_remove=async_remove, discard_blocks=discard_blocks) as containerd:
        assert containerd.keys() == before
        check_snapshots(containerd)

    volumes.server.stop()
    volumes.server.start()
    volumes.create_pool()
    with running(volumes, async_remove=async_remove, discard_blocks=discard_blocks) as containerd:
        assert containerd.keys() == before
        check_snapshots(containerd)
        full = volumes.used_data_blocks()
        for number in range(1, 6):
            containerd.snapshots("rm", f"work-{number}")
        for number in range(5, 0, -1):
            containerd.snapshots("rm", f"layer-{number}")
        containerd.ctr("images", "rm", "--sync", REFERENCE)
        containerd.ctr("content", "prune", "references")
        assert containerd.keys() == {}
    assert volumes.used_data_blocks() < full / 2
    if not async_remove:
        assert volumes.used_data_blocks() == 0
        assert volumes.dmsetup("ls").split()[0] == volumes.name("pool")
        assert len(volumes.dmsetup("ls").splitlines()) == 1
