"""Where a walkthrough plays: a temporary directory, a server of its own, loop devices; and how none stays behind.

Promises: whatever way a walkthrough ends, its mounts, loop devices, links, server and files are gone, and what
could not be removed is named. Never: touches the server, devices or links of anybody else: only what lies
below its own directory, or what it made itself and knows by name.
"""

import contextlib
import errno
import fcntl
import os
import select
import shutil
import signal
import socket
import stat
import struct
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from thinfs.cli.narration import (
    Narrator,
    StepFailed,
    complain,
    ignore_signals,
    run_quietly,
    signals_deferred,
    stop_on_signals,
)
from thinfs.errors import BackingMissing, Busy, Exists, ThinfsError

_LOOP_MAJOR = 7
_LOOP_CTL_ADD = 0x4C80
_LOOP_CTL_REMOVE = 0x4C81
_LOOP_CTL_GET_FREE = 0x4C82

_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
_STOP_SECONDS = 30
_LOG_LINES = 30
_REMOVE_ATTEMPTS = 100


class Stage:
    """Used as a context: `narrator` runs lines in `directory`; leaving it cleans up."""

    def __init__(self, *, below: Path | None, device_names: Sequence[str]) -> None:
        """`below` holds the temporary directory (TMPDIR if None); `device_names` become links if we are root."""
        self._device_names = device_names if os.geteuid() == 0 else ()
        self._made_loop_devices: list[int] = []
        self._server: int | None = None  # pidfd
        for name in self._device_names:
            if os.path.lexists(f"/dev/mapper/{name}"):
                raise Exists(f"/dev/mapper/{name} exists already: the walkthrough needs that name")
        self.directory = Path(tempfile.mkdtemp(prefix="thinfs-demo-", dir=below)).resolve()
        self.mount_dir = self.directory / "dm"
        tools = self.directory / "bin"
        environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ.get('PATH', '')}:{_SYSTEM_PATH}",
            "LC_ALL": "C",
            "THINFS_MOUNT": str(self.mount_dir),
        }
        self.narrator = Narrator(self.directory, environment)
        try:
            tools.mkdir()
            _link_script("thinfs", tools / "thinfs")
            _link_script("thinfs-dmsetup", tools / "dmsetup")
        except BaseException:
            shutil.rmtree(self.directory)
            raise

    def require(self, *programs: str) -> None:
        for program in programs:
            if shutil.which(program, path=self.narrator.environment["PATH"]) is None:
                raise BackingMissing(f"{program}: no such program here; make setup installs what the walkthrough runs")

    def __enter__(self) -> "Stage":
        stop_on_signals()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ignore_signals()
        if isinstance(error, ThinfsError):
            self._show_log()
        self._unmount()
        self._end_server()
        self._unmount(lazily=True)
        self._release_loop_devices()
        for link in self._links():
            with contextlib.suppress(OSError):
                os.unlink(link)
        shutil.rmtree(self.directory, ignore_errors=True)
        left = self.leftovers()
        if left and error is not None:
            complain(f"could not be removed: {', '.join(left)}")
        elif left:
            raise Busy(f"could not be removed: {', '.join(left)}")

    def leftovers(self) -> list[str]:
        """What is still there of a walkthrough that ended."""
        left = [f"mount {path}" for path in self._mounts()]
        left += [f"loop device {path}" for path in self._loop_devices()]
        left += self._links()
        return left + ([str(self.directory)] if self.directory.exists() else [])

    def _links(self) -> list[str]:
        """Our links; one to a dm device or to a loop device over another file is somebody else's, made meanwhile."""
        found = []
        for name in self._device_names:
            link = f"/dev/mapper/{name}"
            try:
                target = os.readlink(link)
            except OSError:
                continue
            if target.startswith("/dev/loop"):
                backing = _backing_file(target.removeprefix("/dev/"))
                # The path is cut to /NAME when the file system it lay in is unmounted.
                if backing is None or backing == f"/{name}" or backing.startswith(f"{self.directory}/"):
                    found.append(link)
        return found

    # -- the server --------------------------------------------------------------------------------------------

    def start_server(self) -> None:
        """Not to be interrupted half-way: a server that is starting cannot be found and stopped yet."""
        with signals_deferred():
            self.narrator.sh(f"thinfs serve --mount {self.mount_dir}")
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{self.mount_dir}.sock")
                credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid, _, _ = struct.unpack("3i", credentials)
            self._server = os.pidfd_open(pid)

    def stop_server(self) -> None:
        self.narrator.sh("thinfs stop")
        self.narrator.check("thinfs stop: the server ended", self._server_ended(), True)

    def _server_ended(self) -> bool:
        if self._server is None:
            return True
        ended, _, _ = select.select([self._server], [], [], _STOP_SECONDS)
        if ended:
            os.close(self._server)
            self._server = None
        return bool(ended)

    def _end_server(self) -> None:
        if self._server is None:
            return
        self._quietly("timeout 60 thinfs stop --force")
        if not self._server_ended():
            signal.pidfd_send_signal(self._server, signal.SIGKILL)
            self._server_ended()

    def device(self, name: str, *, as_root: bool) -> str:
        """Where an active device is: its link, or its file where the kernel's device-mapper owns /dev/mapper."""
        link = f"/dev/mapper/{name}"
        return link if as_root and os.path.exists(link) else str(self.mount_dir / name)

    def mount(self, name: str, directory: str, *, read_only: bool = False) -> None:
        """Through a loop device of mount's own where the device has none."""
        device = self.device(name, as_root=True)
        options = [*(["ro"] if read_only else []), *([] if device.startswith("/dev/") else ["loop"])]
        flags = f"-o {','.join(options)} " if options else ""
        self.narrator.sh(f"mkdir -p {directory} && mount {flags}{device} {directory}")

    def _show_log(self) -> None:
        """The directory goes, and the log with it: where a step failed its end may say why."""
        with contextlib.suppress(OSError):
            lines = Path(f"{self.mount_dir}.log").read_text(errors="replace").splitlines()
            self.narrator.say("(the server's log ends:)")
            for line in lines[-_LOG_LINES:]:
                self.narrator.say(f"  {line}")

    # -- mounts ------------------------------------------------------------------------------------------------

    def _mounts(self) -> list[str]:
        """Mount points below the directory, the latest first."""
        with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
            points = [line.split(" ")[1].replace("\\040", " ") for line in mounts]
        return [point for point in reversed(points) if point.startswith(f"{self.directory}/")]

    def _unmount(self, *, lazily: bool = False) -> None:
        for point in self._mounts():
            if lazily:
                self._quietly(f"umount -l '{point}' || fusermount3 -u -z '{point}'")
            elif point != str(self.mount_dir):
                if self._server is not None:  # what was interrupted while suspended would never finish its I/O
                    self._quietly("for name in $(timeout 10 dmsetup ls | cut -f 1); do dmsetup resume $name; done")
                self._quietly(f"fsfreeze -u '{point}'; umount '{point}'")

    # -- loop devices ------------------------------------------------------------------------------------------

    def attach(self, file: str, number: int) -> str | None:
        """Put `file` behind /dev/loop`number` if that is free, else another; None where there are no loop devices."""
        try:
            control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if _backing_file(f"loop{number}") is not None:
                number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            path = Path(f"/dev/loop{number}")
            if not path.exists():
                with contextlib.suppress(FileExistsError):
                    fcntl.ioctl(control, _LOOP_CTL_ADD, number)
                self._made_loop_devices.append(number)
                _make_node(number)
        except OSError:
            return None
        finally:
            os.close(control)
        self.narrator.sh(f"losetup {path} {file}")
        return str(path)

    def _loop_devices(self) -> list[str]:
        """The loop devices over files below the directory."""
        found = []
        for block in Path("/sys/block").glob("loop*"):
            path = _backing_file(block.name)
            if path is not None and path.startswith(f"{self.directory}/"):
                found.append(f"/dev/{block.name}")
        return found

    def _release_loop_devices(self) -> None:
        for device in self._loop_devices():
            _make_node(int(device.removeprefix("/dev/loop")))
            self._quietly(f"losetup -d {device}")
        if not self._made_loop_devices:
            return
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        for number in self._made_loop_devices:
            for _ in range(_REMOVE_ATTEMPTS):
                try:
                    fcntl.ioctl(control, _LOOP_CTL_REMOVE, number)
                except OSError as error:
                    if error.errno == errno.EBUSY:  # udev may look at it once more, after it is detached
                        time.sleep(0.02)
                        continue
                # devtmpfs has taken the node away; one that we made stays until now.
                with contextlib.suppress(OSError):
                    os.unlink(f"/dev/loop{number}")
                break
        os.close(control)

    def _quietly(self, line: str) -> None:
        with contextlib.suppress(StepFailed):  # no answer: the leftovers tell
            run_quietly(line, Path("/"), self.narrator.environment)


def _backing_file(loop: str) -> str | None:
    """The path a loop device was attached by; None for one that is not attached."""
    try:
        return Path(f"/sys/block/{loop}/loop/backing_file").read_text(errors="surrogateescape").rstrip("\n")
    except OSError:
        return None


def _make_node(number: int) -> None:
    """/dev/loopN, where there is no devtmpfs that makes it, as in a container."""
    with contextlib.suppress(FileExistsError):
        os.mknod(f"/dev/loop{number}", stat.S_IFBLK | 0o600, os.makedev(_LOOP_MAJOR, number))


def _link_script(name: str, link: Path) -> None:
    """The console script of this very installation, else the first in PATH, under the name `link`."""
    script = Path(sysconfig.get_path("scripts"), name)
    found = str(script) if script.exists() else shutil.which(name)
    if found is None:
        raise BackingMissing(f"{name}: not installed beside this Python nor in PATH")
    link.symlink_to(found)
