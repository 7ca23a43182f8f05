"""The sdist is whole: whoever has it alone has every file of the project."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import thinfs

TOP = Path(__file__).parents[2]
NOT_FOR_OTHERS = {".gitignore"}


def tracked() -> set[str]:
    if not (TOP / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the project is not known")
    listing = subprocess.run(["git", "ls-files"], cwd=TOP, check=True, capture_output=True, text=True)
    return {name for name in listing.stdout.splitlines() if (TOP / name).exists()}


def test_the_sdist_holds_every_file_of_the_project(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((TOP / name).read_bytes())
    build = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    assert archive.name == f"thinfs-{thinfs.__version__}.tar.gz"
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert tracked() - names == NOT_FOR_OTHERS
