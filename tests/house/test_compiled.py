"""The engine compiled: it is what runs, it does what the interpreted one does, and a stale one never runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from thinfs import compiled

TOP = Path(__file__).parents[2]
WHICH = """
from thinfs import compiled
import thinfs.bio, thinfs.persistent.btree, thinfs.pool.pool as pool
assert compiled.in_use() == (not pool.__file__.endswith(".py"))
print("compiled" if compiled.in_use() else "interpreted")
"""


def run(*words: str, top: Path = TOP, pure: str = "0", **more: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "THINFS_PURE": pure, "PYTHONPATH": str(top), "PYTHONDONTWRITEBYTECODE": "1", **more}
    return subprocess.run([sys.executable, *words], cwd=top, env=environment, capture_output=True, text=True)


def need_a_compiled_engine() -> None:
    log = TOP / ".cache/engine.log"
    if log.exists() and "mypyc refuses" in log.read_text():
        pytest.fail("mypyc refuses the engine: .cache/engine.log")
    manifest = TOP / "thinfs" / compiled.DIRECTORY / compiled.MANIFEST
    if not manifest.exists():
        pytest.skip("the engine is not compiled (THINFS_PURE=1 at set-up): scripts/setup engine")
    for source, digest in json.loads(manifest.read_text())["sources"].items():
        if compiled.digest_of(str(TOP / "thinfs" / source)) != digest:
            pytest.skip(f"{source} was edited since it was compiled: scripts/setup engine")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    need_a_compiled_engine()
    shutil.copytree(TOP / "thinfs", tmp_path / "thinfs", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_the_tests_themselves_run_interpreted() -> None:
    assert not compiled.in_use()


def test_the_compiled_engine_runs_unless_it_is_not_wanted() -> None:
    need_a_compiled_engine()
    assert (run("-c", WHICH).stdout, run("-c", WHICH, pure="1").stdout) == ("compiled\n", "interpreted\n")


@pytest.mark.parametrize("source", ["pool/thin.py", "persistent/btree.py", "bio.py"])
def test_an_edited_source_runs_and_says_so(copy: Path, source: str) -> None:
    with (copy / "thinfs" / source).open("a") as file:
        file.write("# edited\n")
    done = run("-c", WHICH, top=copy)
    assert done.stdout == "interpreted\n"
    assert f"the compiled engine is not that of {copy}/thinfs/{source}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_of_a_half_built_engine_nothing_runs(copy: Path) -> None:
    next((copy / "thinfs" / compiled.DIRECTORY / "pool").glob("thin.*")).unlink()
    assert run("-c", WHICH, top=copy).stdout == "interpreted\n"
    (copy / "thinfs" / compiled.DIRECTORY / compiled.MANIFEST).unlink()
    assert run("-c", WHICH, top=copy).stdout == "interpreted\n"


def test_the_engine_s_own_tests_pass_compiled() -> None:
    need_a_compiled_engine()
    suites = ["tests/pool", "tests/persistent", "tests/userspace", "tests/simulation/test_bulk.py"]
    planted = ["--deselect", "tests/userspace/test_bugs_in_the_engine.py"]
    done = run("-m", "pytest", "-q", "-x", *suites, *planted)
    assert done.returncode == 0, done.stdout[-4000:]


def test_the_conformance_suite_passes_compiled() -> None:
    need_a_compiled_engine()
    done = run("-m", "pytest", "-q", "-x", "tests/conformance", THINFS_CONFORMANCE_BACKENDS="userspace")
    assert done.returncode == 0, done.stdout[-4000:]
