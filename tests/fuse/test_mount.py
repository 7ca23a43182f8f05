"""The life of a mount: readiness, ends, refusals, stale mounts, ordinary users; and the order of imports."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fuse.conftest import MIB, PROJECT, TIMEOUT, Server
from thinfs.errors import ThinfsError
from thinfs.fuse import mountpoint
from thinfs.mountinfo import mounted_on

Start = Callable[..., Server]


def test_sigterm_unmounts(server: Server) -> None:
    assert mounted_on(server.directory) is not None
    assert server.terminate() == 0
    assert mounted_on(server.directory) is None


def test_sigterm_unmounts_while_a_file_is_open_and_a_writer_waits(server: Server) -> None:
    server("fill")
    writer = subprocess.Popen(
        ["dd", "if=/dev/zero", f"of={server.path()}", "bs=4k", "count=1", "conv=notrunc"], stderr=subprocess.DEVNULL
    )
    try:
        server("wait_for_writers", count=1)
        assert server.terminate() == 0
        assert writer.wait(TIMEOUT) != 0
    finally:
        writer.kill()
        writer.wait()
    assert mounted_on(server.directory) is None


def test_unmounting_from_outside_ends_the_server(server: Server) -> None:
    mountpoint.unmount(server.directory)
    assert server.process.wait(TIMEOUT) == 0


def test_unmounting_is_refused_while_a_file_is_open(server: Server) -> None:
    with open(server.path(), "rb"), pytest.raises(ThinfsError) as refused:
        mountpoint.unmount(server.directory)
    assert refused.value.errno == errno.EBUSY


def test_what_a_killed_server_left_is_cleaned_by_the_next(server: Server, start: Start) -> None:
    fd = os.open(server.path(), os.O_RDONLY)  # keeps the dead mount busy
    try:
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(TIMEOUT)
        with pytest.raises(OSError) as stale:
            os.stat(server.directory)
        assert stale.value.errno == errno.ENOTCONN
        next_server = start(server.directory, ["vol=4096"])
        assert os.listdir(server.directory) == ["vol"]
    finally:
        with suppress(OSError):  # close(2) reports that its server is gone
            os.close(fd)
    assert next_server.terminate() == 0
    assert mounted_on(server.directory) is None


def test_a_second_server_on_the_same_directory_is_refused(server: Server, start: Start) -> None:
    start(
        server.directory,
        [],
        expect=f"EBUSY: {server.directory}: a thinfs server is already mounted there; "
        "`thinfs stop`, or another directory",
    )
    assert os.path.getsize(server.path()) == 16 * MIB


def test_a_directory_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pool.img").touch()
    with pytest.raises(ThinfsError, match="not empty; mounting would hide what is in it") as refused:
        mountpoint.prepare(str(tmp_path))
    assert refused.value.errno == errno.ENOTEMPTY


def test_a_file_and_a_missing_directory_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ThinfsError, match="file: not a directory") as refused:
        mountpoint.prepare(str(file))
    assert refused.value.errno == errno.ENOTDIR
    with pytest.raises(ThinfsError, match="missing: no such directory; make it first: mkdir -p ") as refused:
        mountpoint.prepare(str(tmp_path / "missing"))
    assert refused.value.errno == errno.ENOENT


def test_a_directory_with_another_file_system_is_refused() -> None:
    with pytest.raises(ThinfsError, match="/proc: a proc file system is mounted there") as refused:
        mountpoint.prepare("/proc")
    assert refused.value.errno == errno.EBUSY


def test_a_missing_dev_fuse_is_refused_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint, "DEV_FUSE", str(tmp_path / "fuse"))
    (tmp_path / "mnt").mkdir()
    with pytest.raises(ThinfsError, match="this kernel has no FUSE here; as root: modprobe fuse") as refused:
        mountpoint.prepare(str(tmp_path / "mnt"))
    assert refused.value.errno == errno.ENODEV


def test_an_ordinary_user_is_told_about_fusermount3_and_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = str(tmp_path / "mnt")
    os.mkdir(directory)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(mountpoint, "DEV_FUSE", "/dev/null")
    monkeypatch.setattr(mountpoint, "FUSE_CONF", str(tmp_path / "fuse.conf"))
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ThinfsError, match=r"fusermount3 is missing: .*; install fuse3"):
        mountpoint.prepare(directory)
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert mountpoint.prepare(directory) == os.path.realpath(directory)
    with pytest.raises(ThinfsError, match="allow_other: as root, add the line user_allow_other"):
        mountpoint.prepare(directory, allow_other=True)
    (tmp_path / "fuse.conf").write_text("# a comment\nuser_allow_other\n")
    assert mountpoint.prepare(directory, allow_other=True)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ThinfsError, match="only on a directory it can write to"):
        mountpoint.prepare(directory)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ThinfsError, match="may not be opened; as root: chmod 0666"):
        mountpoint.prepare(directory)


def refuse(*_: object) -> int:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_mount_point_with_a_space_in_its_name_is_found(mountpoint_directory: str, start: Start) -> None:
    spaced = os.path.join(mountpoint_directory, "a b")
    os.mkdir(spaced)
    try:
        server = start(spaced, ["vol=4096"])
        entry = mounted_on(spaced)
        assert entry is not None
        assert entry.fs_type == "fuse.thinfs"
        server.close()
    finally:
        os.rmdir(spaced)


def test_root_gets_the_larger_readahead(server: Server) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    entry = mounted_on(server.directory)
    assert entry is not None
    assert Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb").read_text() == "1024\n"


def test_an_ordinary_user_mounts_reads_writes_punches_and_unmounts(ordinary_server: Server) -> None:
    server = ordinary_server
    path = server.path()
    assert server.run("stat", "-c", "%s %a %U", path).stdout == f"{16 * MIB} 600 nobody\n"
    script = f"printf hello | dd of={path} conv=fsync status=none && head -c 5 {path}"
    assert server.run("sh", "-c", script).stdout == "hello"
    assert server.run("mkfs.ext4", "-q", "-F", path).returncode == 0
    assert server.run("fallocate", "-p", "-o", "0", "-l", "16M", path).returncode == 0
    assert server("state")["mapped"] == []
    assert server.terminate() == 0
    assert mounted_on(server.directory) is None


def test_an_ordinary_users_stale_mount_is_cleaned(ordinary_server: Server, start: Start) -> None:
    ordinary_server.process.kill()
    ordinary_server.process.wait(TIMEOUT)
    again = start(ordinary_server.directory, ["vol=4096"], ordinary_server.prefix)
    assert again.run("ls", again.directory).stdout == "vol\n"
    assert again.terminate() == 0


def python(script: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, timeout=TIMEOUT)


def test_pyfuse3_imported_first_is_refused_in_one_line() -> None:
    done = python("import pyfuse3, thinfs.fuse.binding")
    assert done.stderr.splitlines()[-1] == (
        "ImportError: pyfuse3 was imported before thinfs.fuse.binding: import it from there"
    )


def test_a_missing_extension_is_refused_with_its_remedy() -> None:
    done = python("import sys; sys.modules['thinfs.fuse._fuseshim'] = None; import thinfs.fuse.binding")
    assert "thinfs.fuse._fuseshim is required and does not load" in done.stderr.splitlines()[-1]
    assert "pip install -e ." in done.stderr.splitlines()[-1]


def test_a_session_that_went_past_the_extension_is_noticed() -> None:
    done = python("from thinfs.fuse.binding import *; from thinfs.fuse import binding; verify(binding.nr_sessions())")
    assert done.stderr.splitlines()[-1].startswith(
        "RuntimeError: pyfuse3 opened its session past thinfs.fuse._fuseshim"
    )
