"""The library that lets a guest run on a processor with more register state than User-Mode Linux knows.

Promises: compiled once, with the machine's C compiler, and only where it is needed; an error that says so where there
is none. What it does, and why, is in xstate_shim.c.
"""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).resolve().parent
_CACHE: Final = _PACKAGE.parent / ".cache"
_SOURCE: Final = _PACKAGE / "xstate_shim.c"


def needed() -> bool:
    """Whether the register state is larger than UML of 6.1 and 6.12 knows (xstate_shim.c says what of it)."""
    with open("/proc/cpuinfo") as file:
        flags = next((line.split() for line in file if line.startswith("flags")), [])
    return not {"amx_tile", "apx_f"}.isdisjoint(flags)


def build(target: Path) -> None:
    """`target` from the cache; compiled first when that is older than its source, or cannot be kept there."""
    cached = _CACHE / "xstate_shim.so"
    if not (cached.exists() and cached.stat().st_mtime >= _SOURCE.stat().st_mtime):
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(target), str(_SOURCE)]
        try:
            subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise FileNotFoundError(
                f"this processor has AMX or APX, and a guest then needs {_SOURCE.name} compiled: {error}"
            ) from None
        with contextlib.suppress(OSError):
            _CACHE.mkdir(exist_ok=True)
            partial = f"{cached}.{os.getpid()}"
            shutil.copyfile(target, partial)
            os.replace(partial, cached)
        return
    shutil.copyfile(cached, target)
