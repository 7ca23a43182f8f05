"""The judges: each is the version it is named after, runs on its own libraries wherever it lies, is fetched whole."""

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from kernel_backend import fetch, judges
from kernel_backend.fetch import SetUpFailed
from kernel_backend.judges import JUDGES, Judge
from tests.thin_tools import VERSIONS

KERNELS = [name for name in JUDGES if name.startswith("kernel-")]


def place_of(name: str) -> Path:
    if (line := judges.missing(name)) is not None:
        pytest.skip(line)
    return judges.directory() / name


@pytest.mark.parametrize("name", VERSIONS)
def test_a_tool_is_the_version_it_is_named_after_and_may_be_moved(name: str, tmp_path: Path) -> None:
    moved = shutil.copytree(place_of(name), tmp_path / "a place" / name, symlinks=True)
    said = subprocess.run([moved / "thin_check", "-V"], cwd="/", capture_output=True, text=True, check=True).stdout
    assert said.split()[-1] == name.removeprefix("thin-tools-")


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_the_version_it_is_named_after(name: str) -> None:
    command = ["./linux.uml", "--version"]
    said = subprocess.run(
        command, cwd=place_of(name), env={"LD_LIBRARY_PATH": "lib"}, capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith(name.removeprefix("kernel-") + ".")


@pytest.mark.parametrize("name", sorted(JUDGES))
def test_a_judge_uses_no_library_of_this_machine(name: str) -> None:
    place = place_of(name)
    binaries = [place / "linux.uml"] if name in KERNELS else sorted((place / "bin").iterdir())
    for binary in binaries:
        command: list[str | Path] = [
            place / "ld.so",
            "--inhibit-cache",
            "--library-path",
            place / "lib",
            "--list",
            binary,
        ]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        paths = [Path(line.split()[2]) for line in listed.splitlines() if "=>" in line and "ld-linux" not in line]
        paths = [path for path in paths if path.name != "ld.so"]
        assert paths
        assert [path for path in paths if not path.is_relative_to(place)] == []


def test_what_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    for name in JUDGES:
        (tmp_path / name).mkdir()
    fetch.fetch(list(JUDGES), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(JUDGES)


def test_a_fetch_that_cannot_write_fails_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetUpFailed, match=f"^{tmp_path}/file.*: Not a directory$"):
        fetch.fetch(list(JUDGES), tmp_path / "file" / "judges")


def test_a_name_that_no_row_has_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["fetch", "kernel-2.4"])
    assert fetch.main() == 2
    assert capsys.readouterr().err.startswith("no judge kernel-2.4; there are kernel-6.1, ")


def test_an_absent_judge_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINFS_JUDGES", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"run python3 -m kernel_backend\.fetch thin-tools-0\.9\.0$"):
        judges.program("thin-tools-0.9.0", "thin_check")


class NoNetwork:
    """Pools that hold two packages made on the spot."""

    def __init__(self, work: Path, suites: set[str]) -> None:
        assert suites == {"trixie"}

    def download(self, suite: str, packages: tuple[str, ...], target: Path) -> None:
        target.mkdir()
        for name in packages:
            made = target / f"{name}.tree"
            (made / "DEBIAN").mkdir(parents=True)
            (made / "DEBIAN/control").write_text(
                f"Package: {name}\nVersion: 1.4-2\nArchitecture: amd64\nMaintainer: nobody <nobody@localhost>\n"
                "Description: made by a test\n"
            )
            if name == "libc6":
                libraries = made / "usr/lib/x86_64-linux-gnu"
                libraries.mkdir(parents=True)
                for file in ("ld-linux-x86-64.so.2", "libc.so.6"):
                    shutil.copy(f"/lib/x86_64-linux-gnu/{file}", libraries)
            else:
                (made / "usr/bin").mkdir(parents=True)
                shutil.copy(shutil.which("ls") or "/bin/ls", made / "usr/bin/ls")
                shutil.copy(shutil.which("echo") or "/bin/echo", made / "usr/bin/echo")
                (made / "usr/bin/again").symlink_to("echo")
            fetch.run("dpkg-deb", "-b", str(made), str(target / f"{name}.deb"))
            shutil.rmtree(made)


ROW = Judge("shown-1.4", "trixie", "shown", "1.4-*", ("libc6",), ("usr/bin/echo", "usr/bin/again"))


@pytest.fixture
def with_row(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb on this machine")
    monkeypatch.setattr(fetch, "Pools", NoNetwork)
    monkeypatch.setattr(fetch, "JUDGES", {ROW.name: ROW})
    return monkeypatch


def test_a_row_is_all_that_a_new_judge_takes(with_row: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetch.fetch([ROW.name], tmp_path)
    made = tmp_path / ROW.name
    assert sorted(path.name for path in made.iterdir()) == ["again", "bin", "echo", "ld.so", "lib"]
    assert [path.name for path in (made / "lib").iterdir()] == ["libc.so.6"]
    said = subprocess.run([made / "again", "one", "two  words"], capture_output=True, text=True, check=True).stdout
    assert said == "one two  words\n"
    assert [path.name for path in tmp_path.iterdir()] == [ROW.name]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": "1.5-*"}, r"^shown-1\.4: trixie has shown 1\.4-2, which is no 1\.5-\*$"),
        ({"programs": ("usr/bin/cat",)}, r"^shown-1\.4: no usr/bin/cat in the package$"),
        (
            {"programs": ("usr/bin/ls",)},
            r"^shown-1\.4: ls needs lib\S+, which no package of `needs` has$",
        ),
        ({"needs": ()}, r"^shown-1\.4: no ld-linux-x86-64\.so\.2 in the packages: libc6 is missing from `needs`$"),
        ({"tried": ("./echo-not",)}, r"^shown-1\.4: \./echo-not: No such file or directory$"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_row_that_is_wrong_is_refused_in_a_line_and_leaves_nothing(
    changes: dict[str, object], complaint: str, with_row: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = dataclasses.replace(ROW, **changes)  # type: ignore[arg-type]
    with_row.setattr(fetch, "JUDGES", {row.name: row})
    with pytest.raises(SetUpFailed, match=complaint):
        fetch.fetch([row.name], tmp_path)
    assert list(tmp_path.iterdir()) == []
