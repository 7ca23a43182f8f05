"""The compiled parts (thinfs.fuse._fuseshim against the libfuse 3 of pkg-config, thinfs.tools._mappings, and what
`thinfs run` preloads) and a script; else: pyproject.toml."""

import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py


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
    cmdclass={"build_py": BuildWithSuite},
    # Copied as it is, for its start-up time: the wrapper of an entry point imports re, half as long again.
    scripts=["scripts/thinfs-dmsetup"],
    ext_modules=[
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
