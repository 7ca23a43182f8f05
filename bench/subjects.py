"""Who is measured: thinfs and its peers, each serving one fresh volume as a file, with its snapshots if it has any.

Promises: what a subject started is ended by `close`, also when its set-up failed half way; all keep the same
promise to an fsync (data and mappings on stable storage) and none caches writes in the FUSE kernel module.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Protocol

HERE: Final = Path(__file__).resolve().parent
TOP: Final = HERE.parent
CACHE: Final = TOP / ".cache" / "bench"
SCRIPTS: Final = Path(sys.executable).parent
_READY_SECONDS: Final = 20.0


class Subject(Protocol):
    """One volume of `size_bytes`, at `path`."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def has_snapshots(self) -> bool: ...

    def snapshot(self) -> None:
        """Every block is shared afterwards."""

    def close(self) -> None: ...


def _check(*command: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")


def _wait_until_served(path: str, size_bytes: int, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _READY_SECONDS
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"{path}: its server ended with {server.returncode}")
        with suppress(OSError):
            if os.stat(path).st_size == size_bytes:
                return
        time.sleep(0.02)
    raise RuntimeError(f"{path}: not served within {_READY_SECONDS} s")


def end_server(server: subprocess.Popen[bytes]) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def sparse_file(path: Path, size_bytes: int) -> str:
    with open(path, "wb") as file:
        file.truncate(size_bytes)
    return str(path)


class PlainFile:
    """What the backing file system does without anybody in between."""

    name = "plain"
    has_snapshots = False

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self.path = sparse_file(directory / "plain", size_bytes)

    def snapshot(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        os.unlink(self.path)


class PassThrough:
    """A pass-through file system: `program BACKING MOUNTPOINT` serves MOUNTPOINT/volume."""

    has_snapshots = False

    def __init__(self, name: str, program: Sequence[str], directory: Path, size_bytes: int) -> None:
        self.name = name
        with ExitStack() as stack:
            backing = sparse_file(directory / f"{name}.backing", size_bytes)
            stack.callback(os.unlink, backing)
            mountpoint = directory / f"{name}.mnt"
            mountpoint.mkdir()
            stack.callback(mountpoint.rmdir)
            server = subprocess.Popen([*program, backing, str(mountpoint)], stdin=subprocess.DEVNULL, cwd=TOP)
            stack.callback(end_server, server)
            self.path = str(mountpoint / "volume")
            _wait_until_served(self.path, size_bytes, server)
            self._stack = stack.pop_all()

    def snapshot(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._stack.close()


def compiled_passthrough() -> str:
    """The C program, compiled when its source has changed."""
    source, program = HERE / "passthrough.c", CACHE / "passthrough"
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        CACHE.mkdir(parents=True, exist_ok=True)
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True
        ).stdout.split()
        _check("gcc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(source), *flags)
    return str(program)


class Qcow2:
    """qemu-storage-daemon's FUSE export of a qcow2 with clusters of 64 KiB, cache=writeback: an fsync flushes it."""

    name = "qemu"
    has_snapshots = True

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._server: subprocess.Popen[bytes] | None = None
        self._nr_snapshots = 0
        self._stack = ExitStack()
        with self._stack:
            self._image = str(directory / "volume.qcow2")
            _check(
                "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=64k,lazy_refcounts=off", self._image,
                str(size_bytes),
            )  # fmt: skip
            self._stack.callback(os.unlink, self._image)
            self.path = sparse_file(directory / "qemu", 0)  # the export is mounted over a regular file
            self._stack.callback(os.unlink, self.path)
            self._stack.callback(self._stop)
            self._start()
            self._stack = self._stack.pop_all()

    def _start(self) -> None:
        self._server = subprocess.Popen(
            [
                "qemu-storage-daemon",
                "--blockdev", f"driver=file,node-name=file,filename={self._image}",
                "--blockdev", "driver=qcow2,node-name=volume,file=file",
                "--export", f"type=fuse,id=export,node-name=volume,mountpoint={self.path},writable=on",
            ],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        _wait_until_served(self.path, self._size_bytes, self._server)

    def _stop(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            end_server(server)

    def snapshot(self) -> None:
        """An internal snapshot; qemu-img takes it while the daemon is down."""
        self._stop()
        self._nr_snapshots += 1
        _check("qemu-img", "snapshot", "-c", f"snapshot-{self._nr_snapshots}", self._image)
        self._start()

    def close(self) -> None:
        self._stack.close()


class Thinfs:
    """A thin volume of a pool whose blocks are 64 KiB and zeroed before use, dm-thin's default."""

    has_snapshots = True

    def __init__(self, directory: Path, size_bytes: int, name: str = "thinfs", scripts: Path = SCRIPTS) -> None:
        """`scripts`: where the programs of the tree that is measured are."""
        self.name = name
        self._scripts = scripts
        # two trees are measured beside each other, and /dev/mapper has one device of a name
        self._pool, self._volume = f"thinfs-bench-{name}-pool", f"thinfs-bench-{name}-volume"
        self._mount = directory / name
        self._nr_snapshots = 0
        self._env = {**os.environ, "THINFS_MOUNT": str(self._mount)}
        self._stack = ExitStack()
        with self._stack:
            metadata = sparse_file(directory / f"{name}.meta", 64 << 20)
            self._stack.callback(os.unlink, metadata)
            data = sparse_file(directory / f"{name}.data", 4 * size_bytes)
            self._stack.callback(os.unlink, data)
            self._stack.callback(self._stop)
            _check(str(scripts / "thinfs"), "serve", "--mount", str(self._mount))
            table = f"0 {4 * size_bytes // 512} thin-pool {metadata} {data} 128 0"
            self._dmsetup("create", self._pool, "--table", table)
            self._dmsetup("message", self._pool, "0", "create_thin 0")
            table = f"0 {size_bytes // 512} thin /dev/mapper/{self._pool} 0"
            self._dmsetup("create", self._volume, "--table", table)
            self.path = str(self._mount / self._volume)
            self._stack = self._stack.pop_all()

    def _dmsetup(self, *arguments: str) -> None:
        _check(str(self._scripts / "thinfs-dmsetup"), *arguments, env=self._env)

    def _stop(self) -> None:
        subprocess.run(
            [str(self._scripts / "thinfs"), "stop", "--force", "--mount", str(self._mount)],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        for suffix in (".log", ".lock", ".sock"):
            with suppress(FileNotFoundError):
                os.unlink(f"{self._mount}{suffix}")

    def snapshot(self) -> None:
        self._nr_snapshots += 1
        self._dmsetup("suspend", self._volume)
        self._dmsetup("message", self._pool, "0", f"create_snap {self._nr_snapshots} 0")
        self._dmsetup("resume", self._volume)

    def close(self) -> None:
        self._stack.close()


def make(name: str, directory: Path, size_bytes: int) -> Subject:
    match name:
        case "thinfs":
            return Thinfs(directory, size_bytes)
        case "qemu":
            return Qcow2(directory, size_bytes)
        case "pyfuse3":
            return PassThrough(name, [sys.executable, "-m", "bench.passthrough_pyfuse3"], directory, size_bytes)
        case "libfuse":
            return PassThrough(name, [compiled_passthrough()], directory, size_bytes)
        case "plain":
            return PlainFile(directory, size_bytes)
    raise ValueError(f"no such subject: {name}")


Maker = Callable[[Path, int], Subject]  # directory, size of the volume in bytes

SUBJECTS: Final = ("thinfs", "qemu", "pyfuse3", "libfuse", "plain")
