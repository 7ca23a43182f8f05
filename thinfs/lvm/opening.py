"""The way in: some paths become the volumes on them, for as long as the images are open."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from thinfs.errors import InvalidArgument
from thinfs.lvm.disks import scan
from thinfs.lvm.image import DiskImage
from thinfs.lvm.in_use import refuse_in_use, users
from thinfs.lvm.volumes import Volumes
from thinfs.lvm.writing import WritableDisk


@contextmanager
def open_writable_volumes(paths: Sequence[str]) -> Iterator[Volumes]:
    """The volumes on disks that nobody else uses, locked; what is against writing is the caller's to ask."""
    with open_volumes(paths):
        pass  # refused if somebody uses them; then the locks are exchanged for stronger ones
    with ExitStack() as stack:
        disks = []
        for path in paths:
            disks.append(WritableDisk(path))
            stack.callback(disks[-1].close)
        yield Volumes(scan(disks))


@contextmanager
def open_volumes(paths: Sequence[str], *, live: bool = False) -> Iterator[tuple[Volumes, list[str]]]:
    """The volumes, and who uses the disks: Busy for the first of those, unless `live`."""
    with ExitStack() as stack:
        images = [stack.enter_context(DiskImage(path)) for path in paths]
        for i, image in enumerate(images):
            if any(image.identity == other.identity for other in images[:i]):
                raise InvalidArgument(f"{image.label}: given twice")
        disks = scan(images)
        if not live:
            refuse_in_use(images, disks.groups)
        yield Volumes(disks), users(images, disks.groups) if live else []
