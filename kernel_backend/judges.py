"""The programs that thinfs is held against, each by its version: which there are, and where they are kept.

Promises: a test or the bench names the version it means and gets that one, whatever is installed on the machine; a
program that is absent is an error that says how to get it. `kernel_backend.fetch` gets them.
A new one is a row of JUDGES: what to write is at the fields of Judge, and `python3 -m kernel_backend.fetch NAME` says
in one line what is wrong with the row, a library that no package of `needs` has included.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel_backend.guest_agent import MODULES

_CHECKOUT: Final = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Judge:
    """One package of Debian in one version, and what of it is kept, in a directory `name` of `directory()`."""

    name: str
    suite: str  # where the version is now: bookworm, trixie, trixie-backports, sid
    package: str
    version: str  # a pattern of fnmatch that the package's version must match
    needs: tuple[str, ...]  # packages of the suite that have the shared libraries, libc6 always: nothing else is used
    # Patterns of files in the package that become programs `NAME/program`; a link becomes a program of the link's name.
    programs: tuple[str, ...]
    # How it is started. False: from anywhere, through a script that names its own ld.so. True: in its own directory
    # with LD_LIBRARY_PATH=lib, because it must be the file /proc/self/exe (User-Mode Linux).
    in_its_directory: bool = False
    beside: tuple[str, ...] = ()  # patterns of other files that are kept, with their path: kernel modules
    tried: tuple[str, ...] = ()  # a command that must succeed before the fetch is called done


def _kernel(version: str, suite: str) -> Judge:
    return Judge(
        name=f"kernel-{version}",
        suite=suite,
        package="user-mode-linux",
        version=f"{version}um*",
        needs=("libc6",),
        programs=("usr/bin/linux.uml",),
        in_its_directory=True,
        beside=tuple(f"usr/lib/uml/modules/*/kernel/drivers/{module}.ko" for module in MODULES),
        tried=("./linux.uml", "--version"),
    )


JUDGES: Final = {
    judge.name: judge
    for judge in (
        _kernel("6.1", "bookworm"),
        _kernel("6.12", "trixie"),
        _kernel("7.2", "sid"),
        Judge(
            name="thin-tools-0.9.0",
            suite="bookworm",
            package="thin-provisioning-tools",
            version="0.9.0-*",
            needs=("libc6", "libaio1", "libexpat1", "libgcc-s1", "libstdc++6"),
            programs=("usr/sbin/thin_*",),
            tried=("./thin_check", "-V"),
        ),
        Judge(
            name="thin-tools-1.1.0",
            suite="trixie",
            package="thin-provisioning-tools",
            version="1.1.0-*",
            needs=("libc6", "libcap2", "libgcc-s1", "libudev1"),
            programs=("usr/sbin/thin_*",),
            tried=("./thin_check", "-V"),
        ),
    )
}


def directory() -> Path:
    """THINFS_JUDGES; a checkout's .cache; for an installed package the user's cache."""
    if chosen := os.environ.get("THINFS_JUDGES"):
        return Path(chosen).absolute()
    if (_CHECKOUT / "pyproject.toml").exists():
        return _CHECKOUT / ".cache" / "judges"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "thinfs", "judges").absolute()


def missing(name: str) -> str | None:
    """What to do about its absence, in a line; None when it is there."""
    place = directory() / JUDGES[name].name
    return None if place.is_dir() else f"no {name}: {place} is absent, run python3 -m kernel_backend.fetch {name}"


def program(name: str, program: str) -> Path:
    """Path of one program of a judge; FileNotFoundError with `missing`'s line, or when it has no such program."""
    if (line := missing(name)) is not None:
        raise FileNotFoundError(line)
    path = directory() / name / program
    if not path.exists():
        raise FileNotFoundError(f"{name} has no {program}: {path}")
    return path


def tool(name: str) -> Path:
    """Of thin-provisioning-tools 0.9.0 where that was fetched, else this machine's: for who may have no checkout."""
    judge = JUDGES["thin-tools-0.9.0"]
    if missing(judge.name) is None:
        return program(judge.name, name)
    installed = shutil.which(name, path=f"/usr/sbin:/sbin:{os.environ.get('PATH', '/usr/bin:/bin')}")
    if installed is None:
        raise FileNotFoundError(f"{name}: not installed, apt-get install thin-provisioning-tools")
    return Path(installed)
