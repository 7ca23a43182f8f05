"""containerd with its devmapper snapshotter on a pool, as a process of the test's own: configuration, root, state, socket.

Promises: the `dmsetup` it finds is the drop-in; it has ended, and its shims' mounts with it, when the `with` is over.
"""

import os
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.clients.conftest import SECONDS, Volumes

_CONFIGURATION = """\
version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.overlayfs", "io.containerd.internal.v1.opt",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
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


@dataclass(slots=True)
class Containerd:
    """A running containerd, and its command `ctr`."""

    volumes: Volumes
    socket: Path

    def ctr(self, *words: str | Path) -> str:
        done = self.try_ctr(*words)
        assert done.returncode == 0, f"ctr {' '.join(map(str, words))}: exit {done.returncode}: {done.stdout}"
        return done.stdout

    def try_ctr(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ctr", "--address", self.socket, *words],
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
    socket = root / "c.sock"
    configuration = root / "config.toml"
    configuration.write_text(
        _CONFIGURATION.format(
            root=root,
            socket=socket,
            pool=volumes.name("pool"),
            async_remove=str(async_remove).lower(),
            discard_blocks=str(discard_blocks).lower(),
        )
    )
    environment = {**volumes.server.environment, "PATH": f"{tools}:{os.environ['PATH']}"}
    with (root / "log").open("ab") as log:
        process = subprocess.Popen(
            ["containerd", "--config", configuration], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
    try:
        made = Containerd(volumes, socket)
        trio.run(_until_it_answers, made, process, root / "log")
        yield made
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _until_it_answers(containerd: Containerd, process: "subprocess.Popen[bytes]", log: Path) -> None:
    # It has no readiness of its own but sd_notify, which comes before the plugins' errors are known: so ask.
    with trio.fail_after(30):
        while (answer := containerd.try_ctr("plugins", "ls")).returncode != 0:
            assert process.poll() is None, log.read_text()
            await trio.sleep(0.05)
    line = next(line for line in answer.stdout.splitlines() if " devmapper " in line)
    assert line.split()[-1] == "ok", log.read_text()
