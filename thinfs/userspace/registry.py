"""The devices there are: by name, by number, by what stands on what.

Promises: names in the order of creation; a device that a word of a table means is found whatever way it is written.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from thinfs.errors import Busy, InvalidArgument, NoSuchDevice
from thinfs.userspace.backing import mapped_name, mapped_number
from thinfs.userspace.mapped_device import MappedDevice

MAX_NAME_BYTES: Final = 127
MAX_UUID_BYTES: Final = 128
MAX_MINOR: Final = (1 << 20) - 1
MAX_NESTING: Final = 64  # devices on devices; the kernel sets no limit, and 6.12 overruns its stack at 40 (seen in UML)
_FIRST_INODE: Final = 2  # 1 is the mount's root


def unused_major() -> int:
    """A block major no driver of this machine has, 254 (what dm usually gets) if it is free."""
    try:
        with open("/proc/devices") as listing:
            text = listing.read().partition("Block devices:")[2]
    except OSError:
        text = ""
    taken = {int(line.split()[0]) for line in text.splitlines() if line.strip()}
    return next(major for major in range(254, 0, -1) if major not in taken)


class Registry:
    def __init__(self, mount_dir: str, major: int) -> None:
        self.mount_dir = mount_dir
        self.major = major
        self._devices: dict[str, MappedDevice] = {}
        self._next_inode = _FIRST_INODE

    def __iter__(self) -> Iterator[MappedDevice]:
        return iter(list(self._devices.values()))

    def __len__(self) -> int:
        return len(self._devices)

    def add(self, name: str, uuid: str, minor: int | None = None) -> MappedDevice:
        """A device without a table, of the lowest minor that is free or the given one. InvalidArgument, Busy;
        NoSuchDevice for a minor that is taken."""
        self.check_new_name(name)
        self._check_new_uuid(name, uuid)
        minors = {device.minor for device in self}
        if minor is None:
            minor = next(minor for minor in range(len(minors) + 1) if minor not in minors)
        elif minor in minors or not 0 <= minor <= MAX_MINOR:
            raise NoSuchDevice(f"{name}: minor number {minor} is taken, or not one of 0 to {MAX_MINOR}")
        device = self._devices[name] = MappedDevice(name, uuid, self.major, minor, self._next_inode)
        self._next_inode += 1
        return device

    def set_uuid(self, device: MappedDevice, uuid: str) -> None:
        """Once only."""
        self._check_new_uuid(device.name, uuid)
        if device.uuid or not uuid:
            raise InvalidArgument(f"{device.name}: its uuid cannot be changed from {device.uuid!r} to {uuid!r}")
        device.uuid = uuid

    def _check_new_uuid(self, name: str, uuid: str) -> None:
        if len(uuid.encode("utf-8", "surrogateescape")) > MAX_UUID_BYTES:
            raise InvalidArgument(f"{name}: uuid of {len(uuid)} bytes is longer than {MAX_UUID_BYTES}")
        if uuid and any(device.uuid == uuid for device in self):
            raise Busy(f"{name}: uuid {uuid} is in use")

    def check_new_name(self, name: str) -> None:
        size = len(name.encode("utf-8", "surrogateescape"))
        if not 0 < size <= MAX_NAME_BYTES or "/" in name or name in (".", "..") or "\0" in name:
            raise InvalidArgument(f"{name!r}: not a device name (1 to {MAX_NAME_BYTES} bytes, no slash)")
        if name in self._devices:
            raise Busy(f"{name}: a device of that name exists")

    def drop(self, device: MappedDevice) -> None:
        del self._devices[device.name]

    def rename(self, device: MappedDevice, new_name: str) -> None:
        """It keeps its place in the order."""
        old_name = device.name
        self._devices = {new_name if key == old_name else key: value for key, value in self._devices.items()}
        device.name = new_name

    # -- looking up --------------------------------------------------------------------------------------

    def find(self, name: str) -> MappedDevice:
        """The device of that name; NoSuchDevice (ENXIO) names it."""
        try:
            return self._devices[name]
        except KeyError:
            raise NoSuchDevice(f"{name}: no such device") from None

    def get(self, name: str) -> MappedDevice | None:
        return self._devices.get(name)

    def of_word(self, word: str) -> MappedDevice | None:
        """The device of ours that a word of a table means, or None."""
        number = mapped_number(word)
        if number is not None:
            return next((one for one in self if number in ((one.major, one.minor), one.shown_as)), None)
        name = mapped_name(word, self.mount_dir)
        return None if name is None else self._devices.get(name)

    def of_file(self, info: os.stat_result, mount: os.stat_result | None) -> MappedDevice | None:
        """The device of ours that a file turns out to be: an image file of the mount, or a block device showing one.
        Opened as a file it would wait for the very thread that reads it."""
        if stat.S_ISBLK(info.st_mode):
            number = (os.major(info.st_rdev), os.minor(info.st_rdev))
            return next((device for device in self if device.shown_as == number), None)
        if mount is None or info.st_dev != mount.st_dev:
            return None
        return next((device for device in self if device.inode == info.st_ino), None)

    def users_of(self, device: MappedDevice) -> list[MappedDevice]:
        """Devices with a table, live or inactive, that names `device`."""
        number = (device.major, device.minor)
        return [other for other in self if number in other.deps()]

    def used_by(self, device: MappedDevice) -> Sequence[MappedDevice]:
        """Devices that one of its tables names."""
        numbers = device.deps()
        return [other for other in self if (other.major, other.minor) in numbers]

    def nesting(self, device: MappedDevice) -> int:
        """How many devices of ours stand one on the other, from this one down."""
        return 1 + max((self.nesting(below) for below in self.used_by(device)), default=0)

    def stands_on(self, upper: MappedDevice, lower: MappedDevice) -> bool:
        """Whether `lower` is `upper`, or somewhere below it."""
        seen, to_look_at = {upper}, [upper]
        while to_look_at:
            device = to_look_at.pop()
            if device is lower:
                return True
            for below in self.used_by(device):
                if below not in seen:
                    seen.add(below)
                    to_look_at.append(below)
        return False
