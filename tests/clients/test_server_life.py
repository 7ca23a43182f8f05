"""What an operator does to a server: two of them, a kill, an end with active volumes, a systemd unit."""

import configparser
import os
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.conftest import MIB, Volumes, need, need_block_devices, run
from tests.clients.leftovers import loop_devices_of
from tests.system.conftest import Server, running_server
from tests.thin_tools import accepted

SIZE = 64 * MIB
THINFS = Path(sysconfig.get_path("scripts")) / "thinfs"
UNIT = Path(__file__).resolve().parents[2] / "docs" / "thinfs.service"


@pytest.fixture
def second_server(tmp_path: Path) -> Iterator[Server]:
    """Of another directory."""
    directory = tmp_path / "second"
    directory.mkdir()
    with running_server(directory) as made:
        yield made


def test_a_second_server_cannot_have_the_pool_files_of_the_first(volumes: Volumes, second_server: Server) -> None:
    table = volumes.pool_files.table()
    refused = second_server.run("dmsetup", "create", volumes.name("twice"), "--table", table)
    assert refused.returncode == 1
    first, reason, _ = refused.stdout.splitlines()
    assert first.endswith("failed: Device or resource busy")
    assert str(volumes.pool_files.metadata) in reason
    assert "in use by another process" in reason


def test_two_servers_have_each_their_own_block_devices(volumes: Volumes, second_server: Server) -> None:
    need_block_devices()
    volumes.create_thin("t", SIZE)
    table = f"0 {SIZE // 512} zero"
    # The name is taken in /dev/mapper, where mkfs would find the first one's device: refused, naming its server.
    link = os.readlink(volumes.node("t"))
    refused = second_server.run("dmsetup", "create", volumes.name("t"), "--table", table)
    assert refused.returncode == 1
    first, reason, _ = refused.stdout.splitlines()
    assert first.endswith("failed: Device or resource busy")
    assert reason.endswith(f"of another server, that of {volumes.server.mount}")
    other = volumes.name("other")
    second_server.dmsetup("create", other, "--table", table)
    refused = second_server.run("dmsetup", "rename", other, volumes.name("t"))
    assert (refused.returncode, f"that of {volumes.server.mount}" in refused.stdout) == (1, True)
    assert os.readlink(f"/dev/mapper/{other}") != link
    second_server.dmsetup("remove", other)
    second_server.stop()
    assert os.readlink(volumes.node("t")) == link


def test_a_second_server_on_one_directory_is_refused(volumes: Volumes) -> None:
    refused = volumes.server.run("serve", "--mount", str(volumes.server.mount), "--foreground")
    assert refused.returncode == 1
    assert refused.stdout.startswith(f"thinfs serve: {volumes.server.mount}: served already, by process ")


def test_a_kill_under_a_mount_is_cleaned_up_by_the_next_server(volumes: Volumes) -> None:
    need_block_devices()
    need("mkfs.ext4")
    volumes.create_thin("t", SIZE)
    volumes.create_thin("u", SIZE)
    run("mkfs.ext4", "-q", volumes.node("t"))
    directory = volumes.mounted_at("t")
    (directory / "synced").write_text("synced\n")
    run("sync", "-f", directory)
    nodes = {short: os.readlink(volumes.node(short)) for short in ("t", "u")}
    volumes.server.kill()
    volumes.server.start()
    # That of "u" is free again; that of "t" goes with its mount, and the log says so.
    log = volumes.server.log.read_text()
    assert f"{nodes['u']}: left by a server that ended badly: detached" in log
    assert f"{nodes['t']}: left by a server that ended badly: goes with its mount" in log
    assert not os.path.lexists(volumes.node("t"))
    with pytest.raises(OSError):
        os.listdir(directory / "lost+found")  # not cached, and its device is dead
    volumes.create_pool()
    volumes.activate("t", 0, SIZE)
    run("umount", directory)
    assert (volumes.mounted_at("t") / "synced").read_text() == "synced\n"  # its journal replayed
    run("umount", directory)
    run("e2fsck", "-fn", volumes.node("t"))


def test_sigterm_with_active_volumes_commits_and_detaches(volumes: Volumes) -> None:
    volume = volumes.create_thin("t", SIZE)
    volumes.create_snap("s", "t", SIZE)
    with volume.open("r+b") as file:
        file.write(b"not fsynced")
    volumes.server.stop()
    assert not os.path.ismount(volumes.server.mount)
    assert loop_devices_of(volumes.directory) == []
    accepted(volumes.pool_files.metadata)
    volumes.server.start()
    volumes.create_pool()
    assert volumes.activate("t", 0, SIZE).read_bytes()[:11] == b"not fsynced"


def test_sigterm_under_a_mount_ends_the_server_and_keeps_what_was_synced(volumes: Volumes) -> None:
    need_block_devices()
    need("mkfs.ext4")
    volumes.create_thin("t", SIZE)
    run("mkfs.ext4", "-q", volumes.node("t"))
    directory = volumes.mounted_at("t")
    (directory / "synced").write_text("synced\n")
    run("sync", "-f", directory)
    volumes.server.stop()
    assert "is mounted; its I/O fails from now on" in volumes.server.log.read_text()
    run("umount", directory)
    assert loop_devices_of(volumes.directory) == []


def test_the_example_unit_starts_and_stops_with_commands_that_exist() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    service = unit["Service"]
    assert service["Type"] == "notify"
    for key in ("ExecStart", "ExecStop"):
        words = service[key].split()
        assert Path(words[0]).name == "thinfs"
        run(THINFS, words[1], "--help")


def test_systemd_finds_nothing_wrong_with_the_example_unit(tmp_path: Path) -> None:
    need("systemd-analyze")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/local/bin/thinfs", str(THINFS)))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60, check=False)
    assert UNIT.name not in done.stderr, done.stderr
