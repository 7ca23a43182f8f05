"""The drop-in as a process: what it imports, what it prints, its exit status, its files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import SCRIPTS, TOP, Machine
from tests.dmsetup.transcript import GOLDEN, Command, mask_counts, parse_transcript
from thinfs.dmsetup.commands import usage


def test_the_drop_in_imports_nothing_but_what_the_interpreter_has_at_hand() -> None:
    program = "import sys; before = set(sys.modules); import os, thinfs.cli.dmsetup; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True, env={"PYTHONPATH": str(TOP)}
    )
    imported = set(done.stdout.split())
    assert {name for name in imported if name.startswith("thinfs")} == {
        "thinfs",
        "thinfs.cli",
        "thinfs.cli.dmsetup",
        "thinfs.process_state",
        "thinfs.server",
        "thinfs.server.ownership",
        "thinfs.server.paths",
    }
    assert imported.isdisjoint(
        {"re", "json", "socket", "enum", "typing", "dataclasses", "argparse", "subprocess", "signal", "selectors"}
    )


def test_both_streams_come_in_dmsetup_s_order_with_its_exit_status(faked: Machine) -> None:
    done = faked.dmsetup("create", "p", "--table", "0 131072 thin-pool /metadata /data 100 32")
    assert done.stdout.splitlines() == [
        "device-mapper: reload ioctl on p (254:0) failed: Invalid argument",
        "thinfs: thin-pool: Invalid block size: 100, expected a multiple of 128 sectors from 128 to 2097152",
        "Command failed.",
    ]
    assert done.returncode == 1


def test_the_beginning_of_the_transcript_is_answered_through_the_process(faked: Machine) -> None:
    commands = [entry for entry in parse_transcript(GOLDEN.read_text()) if isinstance(entry, Command)]
    for command in commands[:40]:
        if "remove" in command.argv and "--retry" in command.argv:
            continue
        done = faked.dmsetup(*command.argv)
        lines = done.stdout.replace(usage(), "<usage>\n").splitlines(keepends=True)
        output = "".join(line for line in lines if not line.startswith("thinfs: "))
        assert (command.argv, mask_counts(output)) == (command.argv, mask_counts(command.output))
        assert (command.argv, done.returncode) == (command.argv, command.status)


def test_a_table_is_read_from_standard_input(faked: Machine) -> None:
    faked.prints("create", "x", stdin="0 8 error\n8 8 error\n")
    assert faked.prints("table", "x") == "0 8 error \n8 8 error \n"


def test_a_table_file_is_looked_for_in_the_caller_s_directory(faked: Machine, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("0 8 error\n")
    faked.prints("create", "x", "t.txt", cwd=tmp_path)
    done = faked.dmsetup("create", "y", "nope.txt", cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("nope.txt: No such file or directory\nCommand failed.\n", 1)


def test_a_name_that_is_not_ascii_or_not_text_comes_back_as_it_went(faked: Machine) -> None:
    faked.prints("create", "größe", "--table", "0 8 error")
    assert faked.prints("ls") == "größe\t(254:0)\n"


@pytest.mark.parametrize("script", ["thinfs-dmsetup", "thinfs"])
def test_a_link_called_dmsetup_is_the_drop_in(faked: Machine, tmp_path: Path, script: str) -> None:
    if not (SCRIPTS / script).exists():
        pytest.skip(f"{script} is not installed in {SCRIPTS}")
    (tmp_path / "dmsetup").symlink_to(SCRIPTS / script)
    assert faked.run(str(tmp_path / "dmsetup"), "ls").stdout == "No devices found\n"


def test_thinfs_dmsetup_is_the_drop_in(faked: Machine) -> None:
    assert faked.thinfs("dmsetup", "ls").stdout == "No devices found\n"
    assert faked.thinfs("dmsetup", "info", "x").returncode == 1


def test_a_server_that_cannot_start_is_one_line_that_says_why(machine: Machine) -> None:
    nowhere = Machine(
        machine.mount_dir, {**machine.environment, "THINFS_MOUNT": str(machine.mount_dir / "not" / "there")}
    )
    done = nowhere.dmsetup("ls")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"thinfs serve: {machine.mount_dir}/not/there.lock: No such file or directory",
        f"thinfs: no server for {machine.mount_dir}/not/there",
        "Command failed.",
    ]


def test_a_server_that_goes_away_is_told(machine: Machine) -> None:
    program = (
        "import socket, sys\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(sys.argv[1]); listener.listen(); print('ready', flush=True)\n"
        "listener.accept()[0].recv(100)\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program, f"{machine.mount_dir}.sock"], stdout=subprocess.PIPE, text=True
    )
    with server:
        assert server.stdout is not None
        server.stdout.readline()
        done = machine.dmsetup("ls")
    assert done.returncode == 1
    assert done.stdout.startswith(f"thinfs: the server of {machine.mount_dir} went away; see {machine.mount_dir}.log\n")


def test_the_requests_are_lines_of_json(machine: Machine) -> None:
    program = (
        "import socket, sys\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "listener.bind(sys.argv[1]); listener.listen(); print('ready', flush=True)\n"
        "client = listener.accept()[0]; print(client.makefile().readline()); client.sendall(b'{\"ok\": 3}\\n')\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", program, f"{machine.mount_dir}.sock"], stdout=subprocess.PIPE, text=True
    )
    with server:
        assert server.stdout is not None
        server.stdout.readline()
        done = machine.dmsetup('"quoted"', "back\\slash", "new\nline", "\udcff")
        request = json.loads(server.stdout.readline())
    assert done.returncode == 3
    assert request == {
        "call": "dmsetup",
        "args": {"argv": ['"quoted"', "back\\slash", "new\nline", "\udcff"], "cwd": str(machine.mount_dir.parent)},
    }
