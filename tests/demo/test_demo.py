"""`thinfs demo` as a user runs it: as root and as an ordinary user, to its end and broken off; nothing may be left."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.thin_tools import accepted
from thinfs.cli.demo_docker import carried_pool

ROOT = os.geteuid() == 0
NOBODY = 65534
SHOWN_BY_THE_WALK = "a thin volume and its snapshot, which changed while the base did not"

needs_root = pytest.mark.skipif(not ROOT, reason="needs root: loop devices and mounts")


@dataclass(frozen=True, slots=True)
class Run:
    status: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.out.rstrip("\n").rpartition("\n")[2]


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a directory of his own for everything temporary."""

    directory: Path
    prefix: tuple[str, ...]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("THINFS_")}
        for name in ("HOME", "TMPDIR", "XDG_RUNTIME_DIR"):
            environment[name] = str(self.directory)
        return subprocess.Popen(
            [*self.prefix, sys.executable, "-c", "from thinfs.cli.main import main; main()", "demo", *arguments],
            cwd=Path(__file__).parents[2],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def demo(self, *arguments: str) -> Run:
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            end(process)
        return Run(process.returncode, out, err)


def end(process: subprocess.Popen[str]) -> None:
    """A demo that is still there is asked to end, so that it cleans up after itself; then it is killed."""
    with process:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                process.kill()


def traces_of(directory: Path) -> list[str]:
    """Mounts, loop devices and processes that name a path below `directory`, and files in it."""
    below = f"{directory}/"
    with open("/proc/self/mounts") as mounts:
        found = [line.split()[1] for line in mounts if below in line]
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        found += [str(backing)] if below in backing.read_text() else []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        found += [command] if below in command and process.name != str(os.getpid()) else []
    found += [str(link) for link in Path("/dev/mapper").glob("*") if link.is_symlink() and not link.exists()]
    return found + [str(path) for path in directory.iterdir()]


@pytest.fixture(autouse=True)
def alone_on_the_machine() -> Iterator[None]:
    """As root the walkthrough's names are links in the one /dev/mapper: two runs of these tests take turns."""
    directory = os.open("/dev", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ROOT:
            fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


@pytest.fixture
def root(tmp_path: Path) -> User:
    return User(tmp_path, ())


@pytest.fixture
def ordinary_user(tmp_path: Path) -> Iterator[User]:
    """Ourselves, or nobody if we are root; he owns a directory of his own, because tmp_path is closed to others."""
    if not ROOT:
        yield User(tmp_path, ())
        return
    # Not --no-new-privs: fusermount3 is set-uid root.
    prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    # Through a shell: setpriv itself still has root's capabilities when it looks the program up.
    probe = [*prefix, "/bin/sh", "-c", '"$0" -c "import thinfs.cli.main"', sys.executable]
    if subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip(f"{sys.executable} or this checkout cannot be read by an ordinary user")
    directory = Path(tempfile.mkdtemp(prefix="thinfs-demo-test-"))
    os.chown(directory, NOBODY, NOBODY)
    try:
        yield User(directory, prefix)
    finally:
        shutil.rmtree(directory)


def succeeded(run: Run) -> None:
    assert (run.status, run.err) == (0, ""), run.out + run.err
    assert run.last_line.startswith(f"thinfs demo: shown: {SHOWN_BY_THE_WALK}"), run.last_line


@needs_root
def test_root_is_shown_the_walkthrough_on_loop_devices_and_nothing_is_left(root: User) -> None:
    run = root.demo("--no-docker")
    succeeded(run)
    assert re.search(r"^\$ losetup /dev/loop\d+ data\.img$", run.out, re.MULTILINE)
    # Where the kernel's device-mapper is loaded it owns /dev/mapper: then the volume is the file DIR/NAME. A node
    # `control` alone says nothing: systemd and dmsetup make one for a module that nobody has loaded.
    kernel_owns = Path("/dev/mapper/control").exists() and "device-mapper" in Path("/proc/misc").read_text()
    volume = (r"/\S+" if kernel_owns else "/dev/mapper") + "/hchen-thin-volumn-001"
    assert re.search(rf"^\$ mkfs\.ext4 {volume}$", run.out, re.MULTILINE)
    assert re.search(rf"^\$ mkdir -p base && mount .*{volume} base$", run.out, re.MULTILINE)
    assert traces_of(root.directory) == []


def test_an_ordinary_user_is_shown_the_walkthrough_on_files_and_nothing_is_left(ordinary_user: User) -> None:
    run = ordinary_user.demo("--no-docker")
    succeeded(run)
    assert re.search(r"^\$ mkfs\.ext4 /\S+/hchen-thin-volumn-001$", run.out, re.MULTILINE)
    assert traces_of(ordinary_user.directory) == []


@needs_root
def test_root_mounts_a_docker_container_and_every_file_is_as_the_manifest_says(root: User) -> None:
    docker_half_succeeded(root.demo())
    assert traces_of(root.directory) == []


def test_an_ordinary_user_reads_a_docker_container_and_every_file_is_as_the_manifest_says(
    ordinary_user: User,
) -> None:
    docker_half_succeeded(ordinary_user.demo())
    assert traces_of(ordinary_user.directory) == []


def docker_half_succeeded(run: Run) -> None:
    succeeded(run)
    assert "(compared 138 files with manifest-c2.tsv: 0 differences)" in run.out
    assert run.last_line.endswith("all 138 files of Docker's container c2 as its manifest says")


def test_a_manifest_that_says_something_else_fails_the_demo_and_names_the_file(ordinary_user: User) -> None:
    pool = carried_pool()
    assert pool is not None
    other = ordinary_user.directory.with_name(f"{ordinary_user.directory.name}-docker")
    shutil.copytree(pool, other)
    try:
        manifest = other / "manifest-c2.tsv"
        manifest.write_text(manifest.read_text().replace("work/c2/f10\tf\t100644", "work/c2/f10\tf\t100600"))
        run = ordinary_user.demo("--files", "--docker", str(other))
    finally:
        shutil.rmtree(other)
    assert run.status == 1
    assert run.err == "thinfs demo: container c2: 1 of 138 files differ\n"
    assert "\n  work/c2/f10: " in run.out
    assert traces_of(ordinary_user.directory) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", ["$ thinfs serve", "$ mkfs.ext4", "$ dmsetup suspend"])
def test_a_demo_that_is_broken_off_leaves_nothing(tmp_path: Path, after: str, signum: signal.Signals) -> None:
    process = User(tmp_path, ()).start("--no-docker")
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(after):
                break
        else:
            pytest.fail(f"ended before {after}")
        process.send_signal(signum)
        process.communicate(timeout=120)
        assert process.returncode != 0
    finally:
        end(process)
    assert traces_of(tmp_path) == []


def test_kept_pool_files_stay_and_pass_thin_check(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    succeeded(User(tmp_path, ()).demo("--files", "--keep", str(kept)))
    assert sorted(path.name for path in kept.iterdir()) == ["data.img", "docker", "meta.data.img"]
    for metadata in (kept / "meta.data.img", kept / "docker/metadata"):
        accepted(metadata)


def test_keeping_over_files_that_are_there_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "data.img").touch()
    run = User(tmp_path, ()).demo("--keep", str(tmp_path))
    assert (run.status, run.out) == (1, "")
    assert run.err == f"thinfs demo: --keep {tmp_path}: data.img is there already\n"
