"""thinfs up, down and save as an operator runs them: from nothing, after a kill of the server, on bad files."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.cli.conftest import Machine

FILE = """
[pool.{prefix}-pool]
metadata = "{directory}/meta.img"
data = "{directory}/data.img"
metadata_size = "4MiB"
data_size = "64MiB"
features = ["skip_block_zeroing"]

[pool.{prefix}-pool.volume.{prefix}-web]
id = 0
size = "32MiB"

[pool.{prefix}-pool.volume.{prefix}-web-monday]
id = 1
size = "32MiB"
snapshot_of = "{prefix}-web"
"""


def _written(machine: Machine) -> tuple[Path, str]:
    prefix = f"thinfs-test-{os.getpid()}"
    path = machine.mount_dir.parent / "pools.toml"
    path.write_text(FILE.format(prefix=prefix, directory=machine.mount_dir.parent))
    return path, prefix


def test_volumes_are_back_with_their_names_after_the_server_and_its_directory_are_gone(mounted: Machine) -> None:
    """What a reboot leaves: the pool's files, and nothing in the runtime directory."""
    path, prefix = _written(mounted)
    first = mounted.thinfs("up", str(path))
    assert first.returncode == 0, first.stdout
    volume = mounted.mount_dir / f"{prefix}-web"
    with volume.open("r+b", buffering=0) as image:
        image.write(b"kept" + bytes(4092))
        os.fsync(image.fileno())
    os.kill(mounted.pid(), signal.SIGKILL)
    subprocess.run(["umount", "-l", str(mounted.mount_dir)], check=True)
    for left in mounted.mount_dir.parent.glob("dm*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    again = mounted.thinfs("up", str(path))
    assert again.returncode == 0, again.stdout
    assert (mounted.mount_dir / f"{prefix}-web").read_bytes()[:4] == b"kept"
    assert (mounted.mount_dir / f"{prefix}-web-monday").stat().st_size == 32 << 20
    assert (mounted.thinfs("up", str(path)).stdout) == ""
    saved = mounted.thinfs("save")
    assert f'[pool."{prefix}-pool".volume."{prefix}-web"]' in saved.stdout
    down = mounted.thinfs("down", str(path))
    assert (down.stdout.count(": removed\n"), down.returncode) == (3, 0)
    assert mounted.prints("ls") == "No devices found\n"


def test_down_names_what_is_open_and_removes_nothing(mounted: Machine) -> None:
    path, prefix = _written(mounted)
    assert mounted.thinfs("up", str(path)).returncode == 0
    with (mounted.mount_dir / f"{prefix}-web").open("rb"):
        down = mounted.thinfs("down", str(path))
    assert (down.stdout, down.returncode) == (f"thinfs down: {prefix}-web: open 1 times\n", 1)
    assert len(mounted.prints("ls").splitlines()) == 3


def test_a_bad_file_is_one_line_and_starts_no_server(machine: Machine) -> None:
    path = machine.mount_dir.parent / "pools.toml"
    path.write_text("[pool.p]\nmetadata = 5\n")
    for words in (("up", str(path)), ("down", str(path)), ("up", "/nowhere.toml")):
        done = machine.thinfs(*words)
        assert done.returncode == 1
        assert done.stdout.startswith(f"thinfs {words[0]}: {words[1]}: ")
        assert done.stdout.count("\n") == 1
    assert not Path(f"{machine.mount_dir}.sock").exists()


def test_save_and_down_without_a_server_say_so(machine: Machine) -> None:
    path, _ = _written(machine)
    assert machine.thinfs("save").stdout == f"thinfs save: {machine.mount_dir}: no server\n"
    assert machine.thinfs("down", str(path)).stdout == f"thinfs down: {machine.mount_dir}: no server\n"
