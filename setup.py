"""The compiled parts (the engine by mypyc, thinfs.fuse._fuseshim against the libfuse 3 of pkg-config,
thinfs.tools._mappings, and what `thinfs run` preloads) and a script; else: pyproject.toml."""

import json
import os
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))
from thinfs import compiled


def engine_sources() -> list[str]:
    found = (path for pattern in compiled.SOURCES for path in Path("thinfs").glob(pattern))
    left = {Path("thinfs", name) for name in compiled.INTERPRETED}
    return sorted(str(path) for path in found if path.name != "__init__.py" and path not in left)


def compiled_engine() -> list[Extension]:
    """The engine by mypyc, beside its sources (thinfs/compiled.py); empty where it is not to be had: they run then."""
    if os.environ.get("THINFS_PURE", "0") not in ("", "0") or {"egg_info", "dist_info", "sdist"} & set(sys.argv):
        return []
    try:
        from mypyc.build import mypycify
    except ImportError:
        print("thinfs: no mypy here: the engine stays interpreted", file=sys.stderr)
        return []
    options = ["--config-file=", "--ignore-missing-imports", "--cache-dir=build/mypy_cache"]
    try:
        extensions: list[Extension] = mypycify(
            [*options, *engine_sources()], opt_level="2", group_name="thinfs", target_dir="build/engine"
        )
    except SystemExit:
        print("thinfs: mypyc refuses the engine (above): it stays interpreted", file=sys.stderr)
        return []
    for extension in extensions:
        extension.name = f"thinfs.{compiled.DIRECTORY}.{extension.name.removeprefix('thinfs.')}"
        extension.optional = True  # where it cannot be compiled
    return extensions


class BuildWithManifest(build_ext):
    """Last of all the list of what the engine was compiled from: without it, or with another, nothing of it runs."""

    def run(self) -> None:
        hashes = {path.removeprefix("thinfs/"): compiled.digest_of(path) for path in engine_sources()}
        with_engine = any(f".{compiled.DIRECTORY}." in extension.name for extension in self.extensions)
        directories = [Path(top, "thinfs", compiled.DIRECTORY) for top in (".", self.build_lib)]
        if with_engine:
            for directory in directories:
                (directory / compiled.MANIFEST).unlink(missing_ok=True)
            for extension in self.extensions:
                Path(*extension.name.split(".")).parent.mkdir(parents=True, exist_ok=True)  # build --inplace wants it
        super().run()
        for directory in directories:
            if with_engine and directory.is_dir():
                manifest = {"suffix": EXTENSION_SUFFIXES[0], "sources": hashes}
                (directory / compiled.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


class BuildWithSuite(build_py):
    """A wheel carries tests/conformance and tests/differential as thinfs_suites, for `thinfs conformance` and
    `thinfs differential`."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            suites = Path(self.build_lib, "thinfs_suites")
            self.mkpath(str(suites))
            self.copy_file("tests/__init__.py", str(suites / "__init__.py"))
            for name in ("conformance", "differential"):
                self.mkpath(str(suites / name))
                for file in sorted(Path("tests", name).glob("*.py")):
                    if name == "differential" and file.name.startswith(("test_", "plant", "conftest")):
                        continue  # the tests of the campaigns stand on others of the project
                    self.copy_file(str(file), str(suites / name / file.name))


def pkg_config(option: str) -> list[str]:
    try:
        answer = subprocess.run(
            ["pkg-config", option, "fuse3 >= 3.8"], check=True, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            "thinfs: the libfuse 3 headers (3.8 or later) were not found by pkg-config; on Debian and Ubuntu: "
            f"apt-get install gcc pkg-config python3-dev libfuse3-dev  ({error})"
        ) from None
    return answer.split()


setup(
    cmdclass={"build_py": BuildWithSuite, "build_ext": BuildWithManifest},
    # Copied as it is, for its start-up time: the wrapper of an entry point imports re, half as long again.
    scripts=["scripts/thinfs-dmsetup"],
    ext_modules=[
        *compiled_engine(),
        Extension(
            "thinfs.tools._mappings", ["thinfs/tools/_mappings.c"], extra_compile_args=["-O3", "-Wall", "-Wextra"]
        ),
        Extension(
            "thinfs.fuse._fuseshim",
            ["thinfs/fuse/_fuseshim.c", "thinfs/fuse/_serving.c", "thinfs/fuse/_volumes.c"],
            depends=["thinfs/fuse/_serving.h", "thinfs/fuse/_volumes.h"],
            extra_compile_args=[
                "-D_GNU_SOURCE",
                "-O2",
                "-pthread",
                "-fvisibility=hidden",
                "-Wall",
                "-Wextra",
                *pkg_config("--cflags"),
            ],
            # The calls that it passes on are found with RTLD_NEXT: libfuse must come right behind it.
            extra_link_args=["-Wl,--no-as-needed", *pkg_config("--libs")],
        ),
        Extension(
            "thinfs.ioctl._supervisor",
            ["thinfs/ioctl/_supervisor.c"],
            depends=["thinfs/ioctl/_door.h"],
            extra_compile_args=["-D_GNU_SOURCE", "-Wall", "-Wextra"],
        ),
        # No module: what `thinfs run` puts into LD_PRELOAD, here because an extension is what gets compiled.
        Extension(
            "thinfs.ioctl._preload",
            ["thinfs/ioctl/_preload.c"],
            depends=["thinfs/ioctl/_door.h"],
            # stat and its like must not be inlined into calls of themselves
            extra_compile_args=[
                "-D_GNU_SOURCE",
                "-Wall",
                "-Wextra",
                "-fno-builtin",
                "-fvisibility=hidden",
                "-U_FORTIFY_SOURCE",
            ],
            libraries=["dl"],
        ),
    ],
)
