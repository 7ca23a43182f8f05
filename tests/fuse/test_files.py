"""What the directory shows, and what it refuses."""

import errno
import os
import stat
import subprocess

import pytest

from tests.fuse.conftest import MIB, Server


def test_there_is_one_file_for_each_device(server: Server) -> None:
    assert sorted(os.listdir(server.directory)) == ["odd", "other", "vol"]


def test_a_thousand_devices_are_all_listed(server: Server) -> None:
    for number in range(1000):
        server("add", f"thin-{number:04}", size_bytes=65536)
    assert len(os.listdir(server.directory)) == 1003


def test_a_file_has_the_size_of_its_device_and_belongs_to_the_server(server: Server) -> None:
    info = os.stat(server.path())
    assert (info.st_size, info.st_blksize) == (16 * MIB, 65536)
    assert stat.filemode(info.st_mode) == "-rw-------"
    assert (info.st_uid, info.st_gid) == (os.getuid(), os.getgid())


def test_a_read_only_device_is_0400_and_refuses_writers(server: Server) -> None:
    server("add", "ro", size_bytes=MIB, read_only=True)
    assert stat.filemode(os.stat(server.path("ro")).st_mode) == "-r--------"
    with pytest.raises(OSError) as refused:
        os.open(server.path("ro"), os.O_RDWR)
    assert refused.value.errno == (errno.EROFS if os.geteuid() == 0 else errno.EACCES)


def test_a_device_that_turns_read_only_refuses_those_who_have_it_open(server: Server) -> None:
    fd = os.open(server.path(), os.O_RDWR)
    try:
        server("set", read_only=True)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"x", 0)
        assert os.pread(fd, 1, 0) == b"\0"
    finally:
        os.close(fd)


def test_st_blocks_follows_what_is_mapped(server: Server) -> None:
    fd = os.open(server.path(), os.O_RDWR)
    try:
        assert os.fstat(fd).st_blocks == 0
        os.pwrite(fd, b"x", 65536)
        assert os.fstat(fd).st_blocks == 128
    finally:
        os.close(fd)


def test_the_time_of_the_last_write_is_kept(server: Server) -> None:
    before = os.stat(server.path()).st_mtime_ns
    with open(server.path(), "r+b", buffering=0) as file:
        file.write(b"x")
    assert os.stat(server.path()).st_mtime_ns > before


def test_a_removed_device_has_no_file_at_once(server: Server) -> None:
    os.stat(server.path("other"))
    server("remove", "other")
    assert not os.path.exists(server.path("other"))
    assert "other" not in os.listdir(server.directory)


def test_a_renamed_device_keeps_its_inode_and_its_open_files(server: Server) -> None:
    with open(server.path("other"), "r+b", buffering=0) as file:
        inode = os.fstat(file.fileno()).st_ino
        server("rename", "other", new_name="renamed")
        assert not os.path.exists(server.path("other"))
        assert os.stat(server.path("renamed")).st_ino == inode
        assert file.write(b"still") == 5
    with open(server.path("renamed"), "rb") as again:
        assert again.read(5) == b"still"


def test_a_device_removed_by_force_leaves_its_open_files_answering(server: Server) -> None:
    with open(server.path("other"), "r+b", buffering=0) as file:
        server("remove", "other")
        server("add", "other", size_bytes=4096)
        assert os.pread(file.fileno(), 1, 0) == b"\0"
        assert os.path.getsize(server.path("other")) == 4096


def test_a_new_device_has_a_file_at_once(server: Server) -> None:
    assert not os.path.exists(server.path("new"))
    server("add", "new", size_bytes=4096)
    assert os.path.getsize(server.path("new")) == 4096


def test_a_resize_shows_on_a_file_that_is_open(server: Server) -> None:
    with open(server.path("other"), "r+b", buffering=0) as file:
        assert file.seek(0, os.SEEK_END) == MIB
        server("resize", "other", size_bytes=2 * MIB)
        assert file.seek(0, os.SEEK_END) == 2 * MIB
        assert os.pwrite(file.fileno(), b"end", 2 * MIB - 3) == 3
        server("resize", "other", size_bytes=4096)
        assert os.pread(file.fileno(), 8192, 0) == bytes(4096)


def test_the_open_count_follows_open_and_close(server: Server) -> None:
    descriptors = [os.open(server.path(), os.O_RDONLY) for _ in range(3)]
    assert server("state")["open_count"] == 3
    for fd in descriptors:
        os.close(fd)
    server("settle")
    assert server("state")["open_count"] == 0


def test_after_settle_a_close_is_always_counted(server: Server) -> None:
    for _ in range(200):
        os.close(os.open(server.path(), os.O_RDONLY))
        server("settle")
        assert server("state")["open_count"] == 0


def test_truncation_on_open_loses_nothing(server: Server) -> None:
    with open(server.path(), "r+b", buffering=0) as file:
        file.write(b"kept")
    with open(server.path(), "wb", buffering=0) as file:
        assert os.fstat(file.fileno()).st_size == 16 * MIB
        os.pwrite(file.fileno(), b"!", 4)
    with open(server.path(), "rb") as file:
        assert file.read(6) == b"kept!\0"


def test_dd_writes_a_volume_as_it_writes_a_device(server: Server) -> None:
    done = server.run("dd", "if=/dev/zero", f"of={server.path()}", "bs=1M", "count=3", "conv=fsync", "status=none")
    assert (done.returncode, done.stderr) == (0, "")
    assert os.path.getsize(server.path()) == 16 * MIB
    assert len(server("state")["mapped"]) == 48
    assert server("state")["nr_flushes"] == 1


def test_the_size_cannot_be_changed(server: Server) -> None:
    for size in (4096, 17 * MIB):
        with pytest.raises(OSError) as refused:
            os.truncate(server.path(), size)
        assert refused.value.errno == errno.EINVAL
    os.truncate(server.path(), 16 * MIB)
    assert os.path.getsize(server.path()) == 16 * MIB


def test_files_are_neither_made_nor_removed(server: Server) -> None:
    vol, new = server.path(), server.path("new")
    for attempt in (
        lambda: os.open(new, os.O_RDWR | os.O_CREAT),
        lambda: os.mkdir(new),
        lambda: os.mknod(new),
        lambda: os.symlink("vol", new),
        lambda: os.link(vol, new),
        lambda: os.rename(vol, new),
        lambda: os.unlink(vol),
        lambda: os.chmod(vol, 0o644),
        lambda: os.chown(vol, 1, 1),
    ):
        with pytest.raises(PermissionError):
            attempt()


def test_extended_attributes_are_not_supported(server: Server) -> None:
    with pytest.raises(OSError) as refused:
        os.getxattr(server.path(), "user.x")
    assert refused.value.errno == errno.EOPNOTSUPP


def test_statfs_gives_the_block_size_that_the_loop_driver_needs(server: Server) -> None:
    info = os.statvfs(server.directory)
    assert info.f_bsize == 65536
    assert info.f_blocks == (17 * MIB + 100352) // 65536
    with open(server.path(), "r+b", buffering=0) as file:
        file.write(b"x")
    assert os.statvfs(server.directory).f_bfree == info.f_bfree - 1


def test_the_file_system_is_called_thinfs(server: Server) -> None:
    found = subprocess.run(
        ["findmnt", "-n", "-o", "SOURCE,FSTYPE", server.directory], capture_output=True, text=True
    ).stdout.split()
    assert found == ["thinfs", "fuse.thinfs"]
