"""Loop devices and links of active devices, over plain files in the place of the mount."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.blockdevs.loops import why_none
from thinfs.blockdevs import loop
from thinfs.blockdevs.loop import InUse, LoopDevice
from thinfs.blockdevs.nodes import Nodes
from thinfs.errors import Busy

pytestmark = pytest.mark.trio

MIB = 1 << 20


class FakeDevice:
    """A mapped device: a name, and a count of its opens that starts with the loop driver's own."""

    def __init__(self, name: str, *, read_only: bool = False) -> None:
        self.name = name
        self.read_only = read_only
        self.handles = 1
        self.shown_as: tuple[int, int] | None = None

    def opened(self) -> None:
        self.handles += 1

    def closed(self) -> None:
        self.handles -= 1


@pytest.fixture
def mount_dir(tmp_path: Path) -> Iterator[Path]:
    """A directory of image files; no loop device stays over one of them."""
    reason = why_none()
    if reason is not None:
        pytest.skip(reason)
    directory = tmp_path / "dm"
    directory.mkdir()
    for name in ("a", "b"):
        (directory / name).touch()
        os.truncate(directory / name, MIB)
    yield directory
    left = loop.attached_under(str(directory))
    for device in left:
        loop.abandon(device)
    assert not left


@pytest.fixture
def mapper_dir(tmp_path: Path) -> Path:
    return tmp_path / "mapper"


@pytest.fixture
def nodes(mount_dir: Path, mapper_dir: Path) -> Iterator[Nodes]:
    made = Nodes(str(mount_dir), mapper_dir=str(mapper_dir))
    yield made
    made.close()


def loop_of(nodes: Nodes, name: str) -> LoopDevice:
    device = nodes.loop_of(name)
    assert device is not None
    return device


def is_read_only(device: LoopDevice) -> bool:
    return Path(f"/sys/block/loop{device.number}/ro").read_text() == "1\n"


def size_of(path: Path) -> int:
    with path.open("rb") as block_device:
        return block_device.seek(0, os.SEEK_END)


@contextmanager
def held(path: str, flags: int = os.O_RDONLY) -> Iterator[None]:
    descriptor = os.open(path, flags)
    try:
        yield
    finally:
        os.close(descriptor)


async def test_an_active_device_has_a_loop_device_and_a_link_to_it(nodes: Nodes, mapper_dir: Path) -> None:
    device = FakeDevice("a")
    await nodes.activated(device)
    assert os.readlink(mapper_dir / "a") == loop_of(nodes, "a").path
    assert device.handles == 0  # the loop driver's open is none of the device
    assert size_of(mapper_dir / "a") == MIB
    await nodes.before_remove(device)
    assert device.handles == 1  # until the release of the loop driver's open arrives
    assert os.listdir(mapper_dir) == []


async def test_a_read_only_device_has_a_read_only_loop_device(nodes: Nodes, mapper_dir: Path) -> None:
    device = FakeDevice("a", read_only=True)
    await nodes.activated(device)
    assert is_read_only(loop_of(nodes, "a"))
    await nodes.before_remove(device)


async def test_removal_is_refused_while_the_loop_device_is_open_and_it_stays_whole(
    nodes: Nodes, mapper_dir: Path
) -> None:
    device = FakeDevice("a")
    await nodes.activated(device)
    with held(loop_of(nodes, "a").path):
        with pytest.raises(Busy, match=rf"^a: {loop_of(nodes, 'a').path} is open$"):
            await nodes.before_remove(device)
        assert device.handles == 0
    assert loop.backing_path(loop_of(nodes, "a")) is not None  # the last close has not cleared it
    await nodes.before_remove(device)


async def test_removal_is_refused_while_the_loop_device_is_held_exclusively(nodes: Nodes, mapper_dir: Path) -> None:
    """As a mount holds it."""
    device = FakeDevice("a")
    await nodes.activated(device)
    path = loop_of(nodes, "a").path
    with held(path, os.O_RDONLY | os.O_EXCL):
        assert await nodes.holder("a") == f"{path} is mounted"
        with pytest.raises(Busy, match=rf"^a: {path} is mounted$"):
            await nodes.before_remove(device)
    assert await nodes.holder("a") is None
    await nodes.before_remove(device)


async def test_a_resized_device_has_a_resized_loop_device(nodes: Nodes, mount_dir: Path, mapper_dir: Path) -> None:
    device = FakeDevice("a")
    await nodes.activated(device)
    os.truncate(mount_dir / "a", 3 * MIB)
    await nodes.resized(device)
    assert size_of(mapper_dir / "a") == 3 * MIB
    await nodes.before_remove(device)


async def test_a_renamed_device_takes_its_link_along(nodes: Nodes, mapper_dir: Path) -> None:
    device = FakeDevice("a")
    await nodes.activated(device)
    device.name = "z"
    await nodes.renamed(device, "a")
    assert os.listdir(mapper_dir) == ["z"]
    await nodes.before_remove(device)
    assert os.listdir(mapper_dir) == []


async def test_a_link_of_somebody_else_is_left_alone(nodes: Nodes, mapper_dir: Path) -> None:
    os.mkdir(mapper_dir)
    (mapper_dir / "a").write_text("not ours")
    device = FakeDevice("a")
    await nodes.activated(device)
    await nodes.before_remove(device)
    assert (mapper_dir / "a").read_text() == "not ours"


async def test_a_device_whose_file_cannot_be_attached_goes_on_without(
    nodes: Nodes, mapper_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = FakeDevice("nope")
    await nodes.activated(device)
    assert "nope: no loop device" in caplog.text
    assert device.handles == 1
    await nodes.before_remove(device)


async def test_the_next_server_detaches_and_unlinks_what_a_crashed_one_left(
    nodes: Nodes, mount_dir: Path, mapper_dir: Path
) -> None:
    for name in ("a", "b"):
        await nodes.activated(FakeDevice(name))
    (mapper_dir / "other").symlink_to("/dev/null")
    next_one = Nodes(str(mount_dir), mapper_dir=str(mapper_dir))
    await next_one.clean_stale()
    next_one.close()
    assert loop.attached_under(str(mount_dir)) == []
    assert os.listdir(mapper_dir) == ["other"]


async def test_at_the_end_all_are_detached_and_unlinked(nodes: Nodes, mount_dir: Path, mapper_dir: Path) -> None:
    for name in ("a", "b"):
        await nodes.activated(FakeDevice(name))
    await nodes.detach_all()
    assert loop.attached_under(str(mount_dir)) == []
    assert os.listdir(mapper_dir) == []


async def test_detaching_twice_is_no_error(mount_dir: Path) -> None:
    device = loop.attach(str(mount_dir / "a"), read_only=False)
    with held(device.path), pytest.raises(InUse):
        loop.detach(device)
    loop.detach(device)
    loop.detach(device)


async def test_a_loop_device_in_use_goes_with_its_last_user_when_the_removal_is_deferred(
    nodes: Nodes, mapper_dir: Path
) -> None:
    device = FakeDevice("a")
    await nodes.activated(device)
    attached = loop_of(nodes, "a")
    with held(attached.path):
        with pytest.raises(Busy):
            await nodes.before_remove(device, deferred=True)
        assert device.handles == 1
    assert loop.backing_path(attached) is None
    device.closed()  # its release
    await nodes.before_remove(device)
    assert device.handles == 0
    assert os.listdir(mapper_dir) == []


async def test_a_loop_device_that_somebody_else_detached_is_not_touched_again(
    nodes: Nodes, mount_dir: Path, mapper_dir: Path
) -> None:
    device = FakeDevice("a")
    await nodes.activated(device)
    loop.detach(loop_of(nodes, "a"))
    other = loop.attach(str(mount_dir / "b"), read_only=False)
    assert other == loop_of(nodes, "a")
    await nodes.before_remove(device)
    assert loop.backing_path(other) is not None
    loop.detach(other)
