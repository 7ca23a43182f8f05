"""containerd with its devmapper snapshotter on a pool: a process, a configuration, root and state of the test's own.

Promises: the `dmsetup` it finds is the drop-in; it has ended when the `with` is over.
"""

import os
import select
import shutil
import socket
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.clients.conftest import SECONDS, Volumes

_CONFIGURATION = """\
version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins."io.containerd.snapshotter.v1.devmapper"]
  root_path = "{root}/devmapper"
  pool_name = "{pool}"
  base_image_size = "64MB"
  async_remove = {async_remove}
  discard_blocks = {discard_blocks}
"""


# Where the set-up unpacks the package, if the machine does not have it.
_UNPACKED = Path(__file__).resolve().parents[2] / ".cache/containerd/usr/bin"


def program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=str(_UNPACKED))


@dataclass(slots=True)
class Containerd:
    """A running containerd, and its command `ctr`."""

    volumes: Volumes
    address: Path

    def ctr(self, *words: str | Path) -> str:
        done = self.try_ctr(*words)
        assert done.returncode == 0, f"ctr {' '.join(map(str, words))}: exit {done.returncode}: {done.stdout}"
        return done.stdout

    def try_ctr(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program("ctr") or "ctr", "--address", self.address, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )

    def snapshots(self, *words: str) -> str:
        return self.ctr("snapshots", "--snapshotter", "devmapper", *words)

    def keys(self) -> dict[str, tuple[str, str]]:
        """Of each snapshot its parent and its kind (Active, Committed, View)."""
        rows = [line.split() for line in self.snapshots("ls").splitlines()[1:]]
        return {row[0]: (row[1] if len(row) > 2 else "", row[-1]) for row in rows}


@contextmanager
def running(volumes: Volumes, *, async_remove: bool = False, discard_blocks: bool = False) -> Iterator[Containerd]:
    """Started, and answering."""
    root = volumes.directory / "containerd"
    tools = root / "bin"
    tools.mkdir(parents=True, exist_ok=True)
    link = tools / "dmsetup"
    if not link.is_symlink():
        link.symlink_to(Path(sysconfig.get_path("scripts")) / "thinfs-dmsetup")
    address = root / "c.sock"
    configuration = root / "config.toml"
    configuration.write_text(
        _CONFIGURATION.format(
            root=root,
            socket=address,
            pool=volumes.name("pool"),
            async_remove=str(async_remove).lower(),
            discard_blocks=str(discard_blocks).lower(),
        )
    )
    notify = root / "notify"
    notify.unlink(missing_ok=True)
    ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ready.bind(str(notify))
    environment = {
        **volumes.server.environment,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "NOTIFY_SOCKET": str(notify),
    }
    with (root / "log").open("ab") as log:
        process = subprocess.Popen(
            [program("containerd") or "containerd", "--config", configuration],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
        )
    try:
        made = Containerd(volumes, address)
        assert _became_ready(ready, process), (root / "log").read_text()
        plugins = made.ctr("plugins", "ls")
        line = next(line for line in plugins.splitlines() if " devmapper " in line)
        assert line.split()[-1] == "ok", (root / "log").read_text()
        yield made
    finally:
        ready.close()
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _became_ready(ready: socket.socket, process: "subprocess.Popen[bytes]") -> bool:
    """Waits for containerd to tell its service manager so, or to end."""
    pidfd = os.pidfd_open(process.pid)
    try:
        while select.select([ready.fileno(), pidfd], [], [], SECONDS)[0] == [ready.fileno()]:
            if b"READY=1" in ready.recv(4096):
                return True
        return False
    finally:
        os.close(pidfd)
