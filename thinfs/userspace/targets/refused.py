"""Targets that are named in the list of targets and refused at load: LVM asks for them before it makes a thin snapshot.

LVM judges by the list what a kernel can do, and gives up earlier than it needs to. Never: loads anything.
"""

from typing import NoReturn

from thinfs.errors import InvalidArgument
from thinfs.userspace.loading import Loading


async def load(loading: Loading) -> NoReturn:
    target = loading.line.target
    raise InvalidArgument(f"{target}: thinfs has no such target: dm-snapshot's exception stores are not served")
