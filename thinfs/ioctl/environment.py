"""What a program's environment must say so that its device-mapper ioctls come to a server: the preload library.

Promises: what is preloaded already stays, behind ours. An ordinary user's programs, which may not write to /dev, are
told of a directory for device nodes of their own (DM_DEV_DIR, which libdevmapper and LVM read). Never: starts anything.
"""

import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from thinfs.errors import BackingMissing, InvalidArgument

_SEPARATORS = " :$"  # of LD_PRELOAD, and what the dynamic linker replaces in it: no path can quote them


def _library() -> Path:
    return Path(__file__).resolve().with_name(f"_preload{sysconfig.get_config_var('EXT_SUFFIX')}")


def _words(preload: str) -> list[str]:
    return preload.replace(":", " ").split()


def preload_library() -> str:
    """Its path, fit for LD_PRELOAD; BackingMissing, InvalidArgument."""
    path = _library()
    if not path.exists():
        raise BackingMissing(f"{path}: absent; it is built with thinfs's extension (pip install, or scripts/setup)")
    if any(character in str(path) for character in _SEPARATORS):
        raise InvalidArgument(f"{path}: LD_PRELOAD takes no path with a blank, a colon or a dollar sign")
    return str(path)


def device_directory(mount_dir: str) -> str | None:
    """Where an ordinary user's programs make device nodes; None for root, whose place is /dev."""
    return None if os.geteuid() == 0 else mount_dir + ".dev"


def variables(mount_dir: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to `environment`."""
    before = [word for word in _words(environment.get("LD_PRELOAD", "")) if word != preload_library()]
    added = {"THINFS_MOUNT": mount_dir, "LD_PRELOAD": ":".join([preload_library(), *before])}
    # No kernel tells udev of these devices: LVM and libdevmapper make the nodes themselves, whatever lvm.conf says.
    added["DM_DISABLE_UDEV"] = environment.get("DM_DISABLE_UDEV", "1")
    devices = device_directory(mount_dir)
    if devices is not None and "DM_DEV_DIR" not in environment:
        added["DM_DEV_DIR"] = devices
    return added


def without_library(preload: str) -> str | None:
    """The LD_PRELOAD without our library; None where it is not in there."""
    words, ours = _words(preload), str(_library())
    return ":".join(word for word in words if word != ours) if ours in words else None
