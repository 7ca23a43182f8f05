"""What `thinfs serve --backend kernel` is made of: this machine's own dm-thin, nothing in front of it.

Promises: the kernel's devices are its own: /dev/mapper by udev or as libdevmapper would, no FUSE mount, no loop
devices, and they outlive the server, also at `thinfs stop`. Here, above server/, because nothing below may know
of kernel_backend.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from kernel_backend.backend import KernelBackend
from kernel_backend.local import LocalDeviceMapper
from thinfs.server.daemon import Served


@asynccontextmanager
async def kernel(_directory: str) -> AsyncIterator[Served]:
    """AccessDenied without root, BackingMissing, with what to load, without dm-thin."""
    mapper = await trio.to_thread.run_sync(LocalDeviceMapper)
    try:
        yield Served(KernelBackend(mapper), devices_stay=True)
    finally:
        mapper.close()
