"""dockerd with its devicemapper driver: Debian's programs unmodified under `thinfs run`, on data of its own.

Promises: it touches no network and no other Docker's files; it, its containers and its mounts are gone when the `with`
is over.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.clients.conftest import SECONDS

TOP = Path(__file__).resolve().parents[2]
UNPACKED = TOP / ".cache/docker"
PROGRAM = r"""
#include <stdio.h>
int main(void) { FILE *file = fopen("/made", "a"); fputs("x", file); fclose(file); puts("hello from a container"); }
"""


def missing() -> str | None:
    program = shutil.which("dockerd", path=f"{UNPACKED}/usr/sbin:{os.environ['PATH']}")
    if program is None:
        return "docker.io is neither installed nor unpacked in .cache by the set-up"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"version (\d+)\.", said)
    if version is not None and int(version[1]) >= 25:
        return f"Docker 25 dropped the devicemapper driver, and here is {said.strip()}"
    return None


@dataclass(slots=True)
class Docker:
    directory: Path
    environment: Mapping[str, str]

    @property
    def socket(self) -> str:
        return f"unix://{self.directory}/sock"

    def __call__(self, *words: str | Path) -> str:
        done = self.attempt(*words)
        assert done.returncode == 0, f"docker {' '.join(map(str, words))}: exit {done.returncode}: {done.stdout}"
        return done.stdout

    def attempt(self, *words: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["docker", "-H", self.socket, *map(str, words)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )

    def import_image(self, name: str) -> None:
        """One program, in a tarball that is made here: nothing is pulled."""
        root = self.directory / "image"
        (root / "bin").mkdir(parents=True)
        source = self.directory / "hello.c"
        source.write_text(PROGRAM)
        subprocess.run(["gcc", "-static", "-o", root / "bin/hello", source], check=True)
        subprocess.run(["tar", "-C", root, "-cf", self.directory / "image.tar", "."], check=True)
        self("import", self.directory / "image.tar", name)

    def made(self, container: str) -> str:
        """What the container has in /made, which each of its runs makes longer."""
        target = self.directory / f"made-{container}"
        self("cp", f"{container}:/made", target)
        return target.read_text()


@contextmanager
def running(directory: Path, environment: Mapping[str, str], *options: str) -> Iterator[Docker]:
    """Started, and answering. `environment` is that of the server of thinfs."""
    libraries = ":".join(str(UNPACKED / name) for name in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"))
    programs = f"{UNPACKED}/usr/bin:{UNPACKED}/usr/sbin:{TOP}/.cache/containerd/usr/bin"
    installed = shutil.which("dockerd") is not None
    docker = Docker(
        directory,
        {
            **environment,
            "PATH": f"{'' if installed else programs + ':'}{os.environ['PATH']}:/usr/sbin:/sbin",
            **({} if installed else {"LD_LIBRARY_PATH": libraries}),
        },
    )
    directory.mkdir(exist_ok=True)
    state = tempfile.mkdtemp(prefix="thinfs-")  # the path of containerd's socket must be short
    command = [
        "dockerd", "--data-root", directory / "data", "--exec-root", state, "--pidfile", directory / "pid",
        "-H", docker.socket, "--bridge=none", "--iptables=false", "--ip-masq=false", "--storage-driver", "devicemapper",
        "--storage-opt", "dm.override_udev_sync_check=true", "--storage-opt", "dm.fs=ext4",
        "--storage-opt", "dm.basesize=200M", *options,
    ]  # fmt: skip
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "thinfs.cli.main", "run", "--", *map(str, command)],
            cwd=TOP,
            env=docker.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + SECONDS
        while docker.attempt("version").returncode:
            assert process.poll() is None, (directory / "log").read_text()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield docker
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        subprocess.run(["umount", directory / "data"], capture_output=True, check=False)  # its bind on itself
        shutil.rmtree(state, ignore_errors=True)
