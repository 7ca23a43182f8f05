"""LVM on disks of the test's own: Debian's programs and lvm.conf unmodified, in the environment of `thinfs run`.

Promises: LVM sees the test's disks and no others of the machine; nothing of the group, its nodes, its disks or dmeventd
is left. Its lvm.conf is the package's; beside it a lvmlocal.conf names the disks and where the programs were unpacked.
"""

import os
import re
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.clients.conftest import SECONDS, run
from tests.system.conftest import Server

TOP = Path(__file__).resolve().parents[2]
UNPACKED = TOP / ".cache/lvm"
PID_FILE = Path("/run/dmeventd.pid")  # its only place


def missing() -> str | None:
    """Why LVM cannot be run here, or None."""
    if shutil.which("lvm", path="/usr/sbin:/sbin") is None and not (UNPACKED / "sbin/lvm").exists():
        return "lvm2 is neither installed nor unpacked in .cache by the set-up"
    if dmeventd_pid() is not None:
        return "a dmeventd runs on this machine, and it can only be one"
    return None


def dmeventd_pid() -> int | None:
    with suppress(OSError, ValueError):
        pid = int(PID_FILE.read_text())
        if Path(f"/proc/{pid}/comm").read_text() == "dmeventd\n":
            return pid
    return None


def end_dmeventd() -> None:
    pid = dmeventd_pid()
    if pid is not None:
        handle = os.pidfd_open(pid)
        os.kill(pid, signal.SIGTERM)
        if not select.select([handle], [], [], 10)[0]:
            os.kill(pid, signal.SIGKILL)
        os.close(handle)


@dataclass(slots=True)
class Lvm:
    server: Server
    group: str
    disks: list[str]
    root: Path  # of the programs
    settings: str = ""  # more of lvmlocal.conf
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def grows_file_systems(self) -> bool:
        """By `lvextend -r`: since 2.03.17 a program of one fixed path, where an unpacked package has none."""
        helper = "usr/libexec/lvresize_fs_helper"
        return not (self.root / helper).exists() or Path("/", helper).exists()

    def configure(self) -> None:
        system = self.server.directory / "lvm"
        if not system.exists():
            shutil.copytree(self.root / "etc/lvm", system)
        accepted = " ".join(f'"a|^{disk}$|",' for disk in self.disks)
        (system / "lvmlocal.conf").write_text(
            f'devices {{ filter = [ {accepted} "r|.*|" ] use_devicesfile = 0 }}\n'
            f'dmeventd {{ executable = "{self.root}/sbin/dmeventd" }}\n'
            f'global {{ fsadm_executable = "{self.root}/sbin/fsadm" }}\n{self.settings}\n'
        )
        libraries = ":".join(str(self.root / name) for name in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"))
        self.environment = {
            **self.server.environment,
            "PATH": f"{self.root}/sbin:{os.environ['PATH']}:/usr/sbin:/sbin",
            "LVM_SYSTEM_DIR": str(system),
            "LVM_SUPPRESS_FD_WARNINGS": "1",
            **({} if self.root == Path("/") else {"LD_LIBRARY_PATH": libraries}),
        }
        # What `thinfs run` would set for each of a hundred commands.
        printed = self.server.run("run", "--print-env").stdout
        for line in printed.splitlines():
            name, _, value = line.partition("=")
            self.environment[name] = value

    def attempt(self, *words: str | Path) -> "subprocess.CompletedProcess[str]":
        """A program in the environment of `thinfs run`, standard error with its output."""
        return subprocess.run(
            list(map(str, words)),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )

    def __call__(self, *words: str | Path) -> str:
        """What it printed; it must have succeeded."""
        done = self.attempt(*words)
        assert done.returncode == 0, f"{' '.join(map(str, words))}: exit {done.returncode}: {done.stdout}"
        return done.stdout

    def volumes(self, *more: str) -> dict[str, list[str]]:
        """Of each logical volume its attributes, its size in MiB, its pool, its origin."""
        out = self(
            "lvs", "-a", "--noheadings", "--units", "m", "--nosuffix", "--separator", ",",
            "-o", "lv_name,lv_attr,lv_size,pool_lv,origin", *more, self.group,
        )  # fmt: skip
        rows = [line.strip().split(",") for line in out.splitlines() if "," in line]
        return {row[0]: row[1:] for row in rows}

    def field(self, name: str, volume: str) -> str:
        return self("lvs", "--noheadings", "-o", name, "--units", "m", "--nosuffix", f"{self.group}/{volume}").strip()

    def node(self, volume: str) -> Path:
        return Path("/dev") / self.group / volume

    def mounted(self, volume: str, *options: str) -> Path:
        directory = self.server.directory / f"on-{volume}"
        directory.mkdir(exist_ok=True)
        run("mount", *options, self.node(volume), directory)
        return directory


@contextmanager
def group_on(server: Server, prefix: str, disk_bytes: int, nr_disks: int, settings: str = "") -> Iterator[Lvm]:
    """Physical volumes and a group on them, which the test may remove itself."""
    disks = []
    for index in range(nr_disks):
        path = server.directory / f"disk{index}"
        with path.open("wb") as file:
            file.truncate(disk_bytes)
        disks.append(run("losetup", "--find", "--show", path).strip())
    installed = shutil.which("lvm", path="/usr/sbin:/sbin") is not None
    made = Lvm(server, re.sub(r"\W", "", prefix), disks, Path("/") if installed else UNPACKED, settings)
    try:
        made.configure()
        made("pvcreate", *disks)
        made("vgcreate", made.group, *disks)
        yield made
    finally:
        with suppress(AssertionError, subprocess.TimeoutExpired, OSError):
            if server.process is not None and made.group in made("vgs", "--noheadings", "-o", "vg_name"):
                made("vgremove", "-f", "-y", made.group)
        end_dmeventd()
        shutil.rmtree(f"/dev/{made.group}", ignore_errors=True)
        for disk in disks:
            subprocess.run(["losetup", "-d", disk], check=False)
