"""Static programs under `thinfs run`: what the filter traps is answered, the rest is as it was."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.conftest import as_nobody
from tests.ioctl.conftest import TOP, Run
from tests.system.conftest import Server
from thinfs.ioctl.seccomp import is_static

SOURCE = Path(__file__).with_name("static_client.c")
ANSWERS = """\
control 1 10:236
version Success 4.47
create Success
create Device or resource busy
load Success
resume Success
node 1
efault 1
listed 1
listed 1
wait Interrupted system call
remove Success
status No such device or address
wait Success
"""


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("static") / "client"
    made = subprocess.run(["gcc", "-static", "-o", program, SOURCE], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no static C library: {made.stderr.strip().splitlines()[-1]}")
    program.parent.chmod(0o755)
    return program


def node_of(server: Server, name: str) -> str:
    return f"/dev/mapper/{name}" if "links: " not in server.log.read_text() else str(server.mount / name)


def test_a_static_program_is_seen_to_be_one(client: Path, tmp_path: Path) -> None:
    assert is_static(str(client))
    assert not is_static(sys.executable)
    assert not is_static(str(SOURCE))
    assert not is_static(str(tmp_path / "absent"))


def test_a_static_client_is_answered_as_a_dynamic_one(client: Path, run: Run, server: Server) -> None:
    out = run(str(client), f"st-{os.getpid()}", node_of(server, f"st-{os.getpid()}")).stdout
    assert sorted(out.splitlines()) == sorted(ANSWERS.splitlines())
    without = run(str(client), "st", options=("--no-seccomp",), status=1).stdout
    assert without.startswith("open: No such ")  # file, or device where somebody made the node


def test_a_dynamic_program_runs_under_the_filter_too_and_what_it_starts(client: Path, run: Run) -> None:
    out = run("sh", "-c", f"{client} st-child | grep create; dmsetup targets | grep -c thin", options=("--seccomp",))
    assert out.stdout == "create Success\ncreate Device or resource busy\n2\n"


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137), ("true", 0)])
def test_the_status_is_the_program_s(run: Run, script: str, status: int) -> None:
    run("sh", "-c", script, options=("--seccomp",), status=status)


def test_what_cannot_be_started_is_said_in_a_line(run: Run, tmp_path: Path) -> None:
    out = run("nosuch-program", options=("--seccomp",), status=127).stdout
    assert out == "thinfs run: nosuch-program: No such file or directory\n"


def test_a_signal_reaches_the_program_and_a_daemon_outlives_it(run: Run, server: Server, tmp_path: Path) -> None:
    started, ended = tmp_path / "started", tmp_path / "ended"
    script = f"trap 'echo > {ended}; exit 3' TERM; echo > {started}; while :; do sleep 0.1; done"
    command = [sys.executable, "-m", "thinfs.cli.main", "run", "--seccomp", "--", "sh", "-c", script]
    process = subprocess.Popen(command, cwd=TOP, env=server.environment)
    await_file(started)
    process.terminate()
    assert process.wait(30) == 3
    assert ended.exists()
    late = tmp_path / "late"
    out = run("sh", "-c", f"(sleep 1; dmsetup targets > {late}~; mv {late}~ {late}) >/dev/null 2>&1 & echo away",
              options=("--seccomp",))  # fmt: skip
    assert out.stdout == "away\n"
    await_file(late)
    assert "thin-pool" in late.read_text()


def await_file(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.05)


@pytest.fixture
def nobodys() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="thinfs-test-") as name:
        shutil.chown(name, pwd.getpwnam("nobody").pw_uid)
        yield Path(name)


def test_an_ordinary_user_has_a_pool_by_the_real_dmsetup_and_static_programs_too(client: Path, nobodys: Path) -> None:
    prefix = as_nobody()
    if shutil.which("dmsetup", path="/usr/sbin:/sbin") is None:
        pytest.skip("dmsetup is not installed")
    environment = {
        **os.environ,
        "THINFS_MOUNT": f"{nobodys}/dm",
        "PYTHONPATH": str(TOP),
        "PYTHONDONTWRITEBYTECODE": "1",
    }

    own = str(shutil.copy(client, nobodys / "client"))

    def run(*words: str) -> str:
        done = subprocess.run(
            [*prefix, sys.executable, "-m", "thinfs.cli.main", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd="/",
            timeout=60,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    for name, size in (("data", 64 << 20), ("meta", 4 << 20)):
        (nobodys / name).write_bytes(b"")
        os.truncate(nobodys / name, size)
        shutil.chown(nobodys / name, "nobody")
    dmsetup = ("run", "--", "/sbin/dmsetup")
    try:
        table = f"0 131072 thin-pool {nobodys}/meta {nobodys}/data 128 0 1 skip_block_zeroing"
        assert run(*dmsetup, "create", "pool", "--table", table) == ""
        assert run(*dmsetup, "message", "pool", "0", "create_thin 0") == ""
        assert run(*dmsetup, "create", "vol", "--table", "0 20480 thin /dev/mapper/pool 0") == ""
        assert os.readlink(nobodys / "dm.dev/mapper/vol") == f"{nobodys}/dm/vol"
        assert [line.split()[0] for line in run(*dmsetup, "ls").splitlines()] == ["pool", "vol"]
        run("run", "--", own, "st-user", f"{nobodys}/dm/st-user")
        assert run(*dmsetup, "remove", "vol") == ""
        assert run(*dmsetup, "remove", "pool") == ""
        assert os.listdir(nobodys / "dm.dev/mapper") == []
    finally:
        run("stop", "--force")
