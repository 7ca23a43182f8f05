"""A Docker directory that somebody has prepared, or that a full host has left: one line each, nothing lost, no wait."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Machine
from tests.docker.crashes import mappings_of, records
from thinfs.cli.docker import main

SECONDS = 20  # a command that waits for what it found never ends

HUGE = 10**20
DEEP = "[" * 100_000


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """A FIFO would be waited for, for ever."""
    signal.alarm(SECONDS * 3)
    yield
    signal.alarm(0)


def a_record(docker: Path) -> Path:
    """Of a container, c2."""
    return next(
        path for path in sorted(records(docker).iterdir()) if path.name.startswith("6e86a47") and "-" not in path.name
    )


def a_config(docker: Path) -> Path:
    return min(docker.glob("containers/*/config.v2.json"))


def a_mount_id(docker: Path) -> Path:
    return min(docker.glob("image/devicemapper/layerdb/mounts/*/mount-id"))


def listed(docker: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    status = main(["list", str(docker)])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


RECORDS = {
    "a device id that no number holds": {"device_id": HUGE, "size": 1, "transaction_id": 1},
    "a negative one": {"device_id": -1, "size": 1, "transaction_id": 1},
    "a size that no number holds": {"device_id": 1, "size": 1 << 64, "transaction_id": 1},
    "a list": [1],
    "text for a number": {"device_id": "1", "size": 1, "transaction_id": 1},
    "floats": {"device_id": 1e300, "size": float("nan"), "transaction_id": 1},
    "true for a number": {"device_id": True, "size": 1, "transaction_id": 1},
    "null": None,
}


@pytest.mark.parametrize("value", RECORDS.values(), ids=list(RECORDS))
def test_a_record_of_wrong_values_is_a_problem_of_its_own(
    docker: Path, capsys: pytest.CaptureFixture[str], value: object
) -> None:
    a_record(docker).write_text(json.dumps(value))
    status, text = listed(docker, capsys)
    assert status == 0
    assert f"problem: devicemapper/metadata/{a_record(docker).name}: " in text


TRANSACTIONS = ["../../../etc/passwd", "a\0b", "\ud800", "a\nb", "x" * 300, "/etc/passwd", ".", 5, ["a"], {"a": 1}]


@pytest.mark.parametrize("name", TRANSACTIONS, ids=repr)
@pytest.mark.parametrize("command", ["list", "roll-back"])
def test_a_transaction_that_names_no_record_is_not_followed(
    docker: Path, capsys: pytest.CaptureFixture[str], name: object, command: str
) -> None:
    note = {"open_transaction_id": 99, "device_hash": name, "device_id": 3}
    (records(docker) / "transaction-metadata").write_text(json.dumps(note))
    before = mappings_of(docker)
    main([command, str(docker)])
    text = capsys.readouterr()
    assert "Traceback" not in text.out + text.err
    assert mappings_of(docker) == before


FILES: dict[str, Callable[[Path], Path]] = {
    "record": a_record,
    "transaction": lambda docker: records(docker) / "transaction-metadata",
    "device set": lambda docker: records(docker) / "deviceset-metadata",
    "config": a_config,
    "mount-id": a_mount_id,
    "repositories": lambda docker: docker / "image/devicemapper/repositories.json",
    "image": lambda docker: min((docker / "image/devicemapper/imagedb/content/sha256").iterdir()),
    "cache-id": lambda docker: min(docker.glob("image/devicemapper/layerdb/sha256/*/cache-id")),
    "snapshots": lambda docker: docker / "devicemapper/thinfs-snapshots.json",
}


def deep(path: Path) -> None:
    path.write_text(DEEP)


def too_large(path: Path) -> None:
    os.truncate(path, 1 << 40)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/shadow")


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def a_socket(path: Path) -> None:
    path.unlink()
    here = os.getcwd()
    os.chdir(path.parent)  # for a name that a socket's address holds
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("x")
        os.rename("x", path.name)
    finally:
        os.chdir(here)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def binary(path: Path) -> None:
    path.write_bytes(bytes(range(256)))


def surrogates(path: Path) -> None:
    path.write_text(
        '{"Name": "\\ud800", "rootfs": {"diff_ids": ["\\ud800", 5]}, "Repositories": {"a": {"\\ud800": "x"}}}'
    )


def types(path: Path) -> None:
    path.write_text('{"Name": 5, "Config": 7, "State": [1], "rootfs": {"diff_ids": 5}, "Repositories": {"a": 5}}')


def names(path: Path) -> None:
    path.write_text('{"a": {"b": [1]}, "next_device_id": [], "BaseDeviceFilesystem": {"a": 1}, "rootfs": 5}')


def empty(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize(
    "change",
    [deep, too_large, fifo, link, device, a_socket, directory, binary, surrogates, types, names, empty],
    ids=lambda change: change.__name__,
)
@pytest.mark.parametrize("which", FILES)
def test_any_file_may_be_anything(
    docker: Path, capsys: pytest.CaptureFixture[str], which: str, change: Callable[[Path], None]
) -> None:
    path = FILES[which](docker)
    path.touch()
    change(path)
    status, text = listed(docker, capsys)
    assert status == 0
    assert "root:" not in text
    for options in (["list", "--json", str(docker)], ["snapshot", str(docker), "nothing"]):
        assert main(options) in (0, 1)
    capsys.readouterr()


def test_a_name_draws_nothing_on_the_terminal(docker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads(a_config(docker).read_text())
    config["Name"] = "/\x1b]0;title\x07\x1b[31mred\nproblem: a line of its own\u202e\ud800"
    a_config(docker).write_text(json.dumps(config))
    _, text = listed(docker, capsys)
    assert "\x1b" not in text and "\u202e" not in text
    assert r"\x1b[31mred\nproblem: a line of its own\u202e\ud800" in text


# -- records that a full host has emptied, or that are gone


def test_the_device_of_an_emptied_record_is_neither_advised_to_be_removed_nor_removed(
    docker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = a_record(docker)
    device_id = json.loads(record.read_text())["device_id"]
    record.write_text("")
    _, text = listed(docker, capsys)
    assert f"problem: device {device_id}: in the pool, has no record; may be Docker's: the record {record.name}" in text
    assert "`remove`" not in text
    assert main(["remove", str(docker), str(device_id)]) == 1
    assert f"device {device_id} may be Docker's" in capsys.readouterr().err
    assert device_id in mappings_of(docker)


def test_without_any_record_every_device_may_be_docker_s(docker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in records(docker).iterdir():
        path.unlink()
    _, text = listed(docker, capsys)
    assert text.count("may be Docker's: there are no records in devicemapper/metadata") == 17
    assert "`remove`" not in text
    assert main(["remove", str(docker), "2"]) == 1
    assert 2 in mappings_of(docker)


def test_a_transaction_is_not_rolled_back_while_another_record_cannot_be_read(docker: Path) -> None:
    device_id = json.loads(a_record(docker).read_text())["device_id"]
    a_record(docker).write_text("")
    note = {"open_transaction_id": 40, "device_hash": "ab" * 32, "device_id": device_id}
    (records(docker) / "transaction-metadata").write_text(json.dumps(note))
    assert main(["roll-back", str(docker)]) == 1
    assert device_id in mappings_of(docker)


# -- the pool's own files


def test_a_data_file_that_is_short_or_gone_or_a_link_is_a_problem(
    docker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = docker / "devicemapper/devicemapper/data"
    size = data.stat().st_size
    os.truncate(data, size - 65536)
    name = "problem: devicemapper/devicemapper/data"
    assert f"{name}: {size - 65536} bytes, shorter than its pool, {size}" in listed(docker, capsys)[1]
    data.unlink()
    assert f"{name}: No such file or directory" in listed(docker, capsys)[1]
    data.symlink_to("/dev/null")
    assert f"{name}: a symbolic link: not followed" in listed(docker, capsys)[1]


@pytest.mark.parametrize("which", ["data", "metadata"])
def test_a_link_in_the_place_of_a_pool_file_is_not_written_through(
    docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    path = docker / "devicemapper/devicemapper" / which
    outside = tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    before = outside.stat()
    for words in (["snapshot", str(docker), "c2"], ["roll-back", str(docker)], ["remove", str(docker), "999"]):
        assert main(words) == 1
        assert "a symbolic link: not followed" in capsys.readouterr().err
    if os.geteuid() == 0:
        assert main(["mount", "--rw", str(docker), "c2", str(tmp_path)]) == 1
        assert "a symbolic link: not followed" in capsys.readouterr().err
    assert (outside.stat().st_mtime_ns, outside.stat().st_size) == (before.st_mtime_ns, before.st_size)
    path.unlink()
    outside.rename(path)


def test_a_directory_that_leads_out_is_not_followed(
    docker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inner = docker / "devicemapper/devicemapper"
    outside = tmp_path / "outside"
    inner.rename(outside)
    inner.symlink_to(outside)
    assert main(["snapshot", str(docker), "c2"]) == 1
    assert f"leads out of {docker}" in capsys.readouterr().err
    inner.unlink()
    outside.rename(inner)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")
def test_a_directory_with_blanks_in_its_path_is_mounted_and_gives_no_rights_away(
    mounted: Machine, whole: Path, tmp_path: Path
) -> None:
    spaced = tmp_path / "do ck\\er"
    whole.rename(spaced)
    mountpoint = tmp_path / "on this"
    mountpoint.mkdir()
    done = mounted.thinfs("docker", "mount", str(spaced), "c2", str(mountpoint))
    try:
        assert done.returncode == 0, done.stdout
        found = subprocess.run(["findmnt", "-no", "OPTIONS", mountpoint], capture_output=True, text=True, check=True)
        assert {"nosuid", "nodev", "ro"} <= set(found.stdout.strip().split(","))
    finally:
        done = mounted.thinfs("docker", "umount", str(mountpoint))
    assert done.returncode == 0, done.stdout
