"""What a front end wants to know of the devices: each call is made within the operation it is about."""

from collections.abc import Collection
from typing import Protocol

from thinfs.userspace.mapped_device import MappedDevice


class DeviceListener(Protocol):
    """What a front end wants to know, called within the operation.

    `check_new_name` may refuse with Busy, before a creation or a renaming.
    `before_suspend` is not called for a noflush suspend: nothing is flushed then (it might wait for space). `resumed`
    is called once I/O runs again. `mounted` names the devices with a file system mounted on them: an open each.
    `before_remove` may refuse with Busy; if `deferred`, it has then counted its use as one more open of the device.
    """

    def check_new_name(self, name: str) -> None: ...

    async def activated(self, device: MappedDevice) -> None: ...

    async def resized(self, device: MappedDevice) -> None: ...

    async def before_suspend(self, device: MappedDevice, *, lockfs: bool) -> None: ...

    async def resumed(self, device: MappedDevice) -> None: ...

    async def mounted(self) -> Collection[str]: ...

    async def before_remove(self, device: MappedDevice, *, deferred: bool) -> None: ...

    async def removed(self, device: MappedDevice) -> None: ...

    async def renamed(self, device: MappedDevice, old_name: str) -> None: ...


class NoListener:
    """For a device-mapper without front ends: in tests, in tools."""

    def check_new_name(self, name: str) -> None:
        return

    async def activated(self, device: MappedDevice) -> None:
        return

    async def resized(self, device: MappedDevice) -> None:
        return

    async def before_suspend(self, device: MappedDevice, *, lockfs: bool) -> None:
        return

    async def resumed(self, device: MappedDevice) -> None:
        return

    async def mounted(self) -> Collection[str]:
        return ()

    async def before_remove(self, device: MappedDevice, *, deferred: bool) -> None:
        return

    async def removed(self, device: MappedDevice) -> None:
        return

    async def renamed(self, device: MappedDevice, old_name: str) -> None:
        return
