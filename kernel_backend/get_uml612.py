"""Fetch Debian 13's User-Mode Linux kernel, 6.12, and the C library it runs on, into a private directory.

Promises: needs no root, leaves the system alone, verifies with the Debian keyring of this machine, and
publishes a complete directory or nothing; one line says what could not be done. The mirror is the one that
this machine's apt uses: only the suite is another. The result may be moved: the program's interpreter is `./ld.so`,
so it is started in its own directory.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kernel_backend.guest_agent import MODULES
from kernel_backend.uml import KERNEL_6_12

_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_INTERPRETER: Final = b"/lib64/ld-linux-x86-64.so.2\0"
_PACKAGES: Final = ("user-mode-linux/trixie", "libc6/trixie")


class SetUpFailed(Exception):
    """In one line."""


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise SetUpFailed(f"{command[0]}: exit {done.returncode}: {lines[0]}")
    return done.stdout


def _other_indexes() -> list[str]:
    """What this machine's apt would fetch beside the packages' index: contents, translations, metadata, tens of MB."""
    prefix = "Acquire::IndexTargets::deb::"
    lines = [line.removeprefix(prefix) for line in run("apt-config", "dump").splitlines() if line.startswith(prefix)]
    return sorted({name for name, separator, _ in (line.partition("::") for line in lines) if separator} - {"Packages"})


def download(directory: Path, packages: Sequence[str]) -> None:
    """Packages named as NAME/SUITE, verified, as .deb files in `directory`."""
    sites = run("apt-get", "indextargets", "--format", "$(SITE)").split()
    mirrors = sorted({site for site in sites if "security" not in site})
    if not mirrors:
        raise SetUpFailed("apt-get: this machine's apt has no mirror configured")
    for name in ("lists/partial", "cache/archives/partial"):
        (directory / name).mkdir(parents=True)
    sources = directory / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYRING}] {mirrors[0]} trixie main\n")
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/nonexistent",
        "Dir::State::Lists": directory / "lists",
        "Dir::Cache": directory / "cache",
        "APT::Sandbox::User": "",
        **{f"Acquire::IndexTargets::deb::{name}::DefaultEnabled": "false" for name in _other_indexes()},
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    run("apt-get", *options, "-qq", "update")
    run("apt-get", *options, "-qq", "download", *packages, cwd=directory)


def _assemble(download: Path, target: Path) -> None:
    """linux, ld.so, lib/libc.so.6 and modules/: all that a start needs."""
    unpacked = download / "unpacked"
    for package in download.glob("*.deb"):
        run("dpkg-deb", "-x", str(package), str(unpacked))
    libraries = unpacked / "usr/lib/x86_64-linux-gnu"
    image = (unpacked / "usr/bin/linux.uml").read_bytes()
    if image.count(_INTERPRETER) != 1:
        raise SetUpFailed("the kernel names its interpreter otherwise than expected")
    # A relative interpreter is looked up from the current directory: no limit on where the cache lies.
    image = image.replace(_INTERPRETER, b"./ld.so\0".ljust(len(_INTERPRETER), b"\0"))
    (target / "lib").mkdir(parents=True)
    (target / "linux").write_bytes(image)
    (target / "linux").chmod(0o755)
    shutil.copy(libraries / "ld-linux-x86-64.so.2", target / "ld.so")
    shutil.copy(libraries / "libc.so.6", target / "lib/libc.so.6")
    modules = unpacked / "usr/lib/uml/modules"
    for release in modules.iterdir():
        for module in MODULES:
            file = f"{release.name}/kernel/drivers/{module}.ko"
            (target / "modules" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(modules / file, target / "modules" / file)
    environment = {**os.environ, "LD_LIBRARY_PATH": "lib"}
    done = subprocess.run(["./linux", "--version"], cwd=target, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SetUpFailed(f"the kernel does not start: {done.stderr.strip()}")


def fetch(target: Path) -> None:
    """Nothing is done, and no network asked, when the kernel is there already."""
    if KERNEL_6_12.missing is None:
        return
    if not os.access(_KEYRING, os.R_OK):
        raise SetUpFailed(f"{_KEYRING}: absent, apt-get install debian-archive-keyring")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".uml612-", dir=target.parent) as work:
            downloaded, complete = Path(work, "download"), Path(work, "complete")
            downloaded.mkdir()
            download(downloaded, _PACKAGES)
            _assemble(downloaded, complete)
            shutil.rmtree(target, ignore_errors=True)
            complete.rename(target)
    except OSError as error:
        raise SetUpFailed(f"{error.filename or target}: {error.strerror}") from None


def main() -> int:
    assert KERNEL_6_12.directory is not None
    try:
        fetch(Path(KERNEL_6_12.directory))
    except SetUpFailed as error:
        print(f"kernel 6.12 for the guest: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
