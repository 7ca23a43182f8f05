"""Fetch the judges from Debian's pools, each in its version, into a private directory: `python -m` this module.

Promises: needs no root, leaves the system alone, verifies with the Debian keyring of this machine, asks no network when
all is there, and publishes a complete directory or nothing; one line says what could not be done. The mirror is the one
that this machine's apt uses: only the suite is another. What is fetched runs on its own C library, on any Debian, and
may be moved.
"""

import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from kernel_backend.judges import JUDGES, Judge, directory

_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_ARCHITECTURE: Final = "amd64"
_INTERPRETER: Final = b"/lib64/ld-linux-x86-64.so.2\0"
_LIBRARY_PATHS: Final = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
_LOADER: Final = "ld-linux-x86-64.so.2"
# $0 is the path that was started, a link's own: the programs of one binary know by it which one they are.
_START: Final = """#!/bin/sh
here=${0%%/*}
exec "$here/ld.so" --library-path "$here/lib" --argv0 "$0" "$here/bin/%s" "$@"
"""


class SetUpFailed(Exception):
    """In one line."""


def run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise SetUpFailed(f"{command[0]}: exit {done.returncode}: {lines[0]}")
    return done.stdout


def mirror() -> str:
    """The address that this machine's apt has for Debian."""
    sites = run("apt-get", "indextargets", "--format", "$(ORIGIN) $(SITE)").splitlines()
    mirrors = sorted({line.removeprefix("Debian ") for line in sites if line.startswith("Debian ")})
    mirrors = [site for site in mirrors if "security" not in site]
    if not mirrors:
        raise SetUpFailed("apt-get: this machine's apt has no Debian mirror, or was never updated (apt-get update)")
    return mirrors[0]


def _other_indexes() -> list[str]:
    """What this machine's apt would fetch beside the packages' index: contents, translations, metadata, tens of MB."""
    prefix = "Acquire::IndexTargets::deb::"
    lines = [line.removeprefix(prefix) for line in run("apt-config", "dump").splitlines() if line.startswith(prefix)]
    return sorted({name for name, separator, _ in (line.partition("::") for line in lines) if separator} - {"Packages"})


class Pools:
    """Debian's pools of some suites, as apt sees them with lists of its own."""

    def __init__(self, work: Path, suites: Iterable[str]) -> None:
        if not os.access(_KEYRING, os.R_OK):
            raise SetUpFailed(f"{_KEYRING}: absent, apt-get install debian-archive-keyring")
        for name in ("lists/partial", "cache/archives/partial"):
            (work / name).mkdir(parents=True)
        (work / "status").touch()  # nothing is installed: what the machine has is no candidate
        site = mirror()
        lines = [f"deb [signed-by={_KEYRING} arch={_ARCHITECTURE}] {site} {suite} main\n" for suite in sorted(suites)]
        (work / "sources.list").write_text("".join(lines))
        settings = {
            "Dir::Etc::sourcelist": work / "sources.list",
            "Dir::Etc::sourceparts": "/nonexistent",
            "Dir::Etc::preferences": "/nonexistent",
            "Dir::Etc::preferencesparts": "/nonexistent",
            "Dir::State::Lists": work / "lists",
            "Dir::State::status": work / "status",
            "Dir::Cache": work / "cache",
            "APT::Sandbox::User": "",
            "APT::Architecture": _ARCHITECTURE,
            "APT::Default-Release": "",
            **{f"Acquire::IndexTargets::deb::{name}::DefaultEnabled": "false" for name in _other_indexes()},
        }
        self._options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
        run("apt-get", *self._options, "-qq", "update")

    def download(self, suite: str, packages: Sequence[str], target: Path) -> None:
        """Verified, as .deb files in `target`."""
        target.mkdir()
        run("apt-get", *self._options, "-qq", "download", *(f"{name}/{suite}" for name in packages), cwd=target)


def _unpack(judge: Judge, downloaded: Path, own: Path, libraries: Path) -> None:
    """The judge's package apart from those of its libraries, which may have programs too."""
    for package in downloaded.glob("*.deb"):
        name, version = (run("dpkg-deb", "-f", str(package), field).strip() for field in ("Package", "Version"))
        if name == judge.package and not fnmatch.fnmatch(version, judge.version):
            raise SetUpFailed(f"{judge.suite} has {name} {version}, which is no {judge.version}")
        run("dpkg-deb", "-x", str(package), str(own if name == judge.package else libraries))


def _found(tree: Path, patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        paths = sorted(path for path in tree.glob(pattern) if not path.is_dir())
        if not paths:
            raise SetUpFailed(f"no {pattern} in the package")
        yield from paths


def _copy_libraries(binary: Path, trees: Sequence[Path], target: Path) -> None:
    """What the program is linked to, from the packages alone: one of this machine would be another on another."""
    places = [tree / path for tree in trees for path in _LIBRARY_PATHS]
    loader = next((place / _LOADER for place in places if (place / _LOADER).exists()), None)
    if loader is None:
        raise SetUpFailed(f"no {_LOADER} in the packages: libc6 is missing from `needs`")
    if not (target / "ld.so").exists():
        shutil.copy(loader, target / "ld.so")
        (target / "lib").mkdir()
    search = ":".join(str(place) for place in places)
    listed = run(str(loader), "--inhibit-cache", "--library-path", search, "--list", str(binary))
    for words in (line.split() for line in listed.splitlines()):
        if "=>" in words and Path(words[0]).name != _LOADER:
            library = Path(words[2])
            if not library.is_relative_to(trees[0].parent):
                raise SetUpFailed(f"{binary.name} needs {words[0]}, which no package of `needs` has")
            shutil.copy(library, target / "lib" / words[0])


def _without_interpreter(binary: Path) -> bytes:
    """Its interpreter is `./ld.so`, looked up from the current directory: no limit on where the cache lies."""
    image = binary.read_bytes()
    if image.count(_INTERPRETER) != 1:
        raise SetUpFailed(f"{binary.name} names its interpreter otherwise than expected")
    return image.replace(_INTERPRETER, b"./ld.so\0".ljust(len(_INTERPRETER), b"\0"))


def _assemble(judge: Judge, work: Path) -> Path:
    own, complete = work / "own", work / "complete"
    _unpack(judge, work / "downloaded", own, work / "libraries")
    complete.mkdir()
    for path in _found(own, judge.programs):
        binary = path.resolve()
        if not binary.is_relative_to(own.resolve()):
            raise SetUpFailed(f"{path.name} is a link out of the package, to {os.readlink(path)}")
        _copy_libraries(binary, (own, work / "libraries"), complete)
        if judge.in_its_directory:
            (complete / path.name).write_bytes(_without_interpreter(binary))
        else:
            (complete / "bin").mkdir(exist_ok=True)
            shutil.copy(binary, complete / "bin" / binary.name)
            (complete / path.name).write_text(_START % binary.name)
        (complete / path.name).chmod(0o755)
    for path in _found(own, judge.beside):
        (complete / path.relative_to(own)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, complete / path.relative_to(own))
    if judge.tried:
        environment = {**os.environ, **({"LD_LIBRARY_PATH": "lib"} if judge.in_its_directory else {})}
        try:
            run(*judge.tried, cwd=complete, env=environment)
        except OSError as error:
            raise SetUpFailed(f"{judge.tried[0]}: {error.strerror}") from None
    return complete


def fetch(names: Sequence[str], target: Path | None = None) -> None:
    """Those of `names` that are not there; SetUpFailed names the first that could not be had, those before it stay."""
    target = target or directory()
    wanted = [JUDGES[name] for name in names if not (target / name).is_dir()]
    if not wanted:
        return
    if (machine := run("dpkg", "--print-architecture").strip()) != _ARCHITECTURE:
        raise SetUpFailed(f"they are programs of {_ARCHITECTURE}, and this machine is {machine}")
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target) as temporary:
            pools = Pools(Path(temporary), {judge.suite for judge in wanted})
            for judge in wanted:
                work = Path(temporary, judge.name)
                work.mkdir()
                try:
                    pools.download(judge.suite, (judge.package, *judge.needs), work / "downloaded")
                    _assemble(judge, work).rename(target / judge.name)
                except SetUpFailed as error:
                    raise SetUpFailed(f"{judge.name}: {error}") from None
                shutil.rmtree(work)
    except OSError as error:
        raise SetUpFailed(f"{error.filename or target}: {error.strerror}") from None


def main() -> int:
    names = sys.argv[1:] or list(JUDGES)
    if unknown := [name for name in names if name not in JUDGES]:
        print(f"no judge {', '.join(unknown)}; there are {', '.join(JUDGES)}", file=sys.stderr)
        return 2
    try:
        fetch(names)
    except SetUpFailed as error:
        print(f"the programs that tests are held against: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
