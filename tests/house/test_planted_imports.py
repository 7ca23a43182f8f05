"""Each import that a contract forbids, planted in a copy of the tree: lint-imports must refuse it and say where."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
LINT = Path(sys.executable).with_name("lint-imports")

# (module it is planted in, the import, what the complaint must name besides the module)
PLANTED = [
    ("thinfs.pool.modes", "import kernel_backend.local", "kernel_backend.local"),
    ("thinfs.userspace.devices", "import kernel_backend", "kernel_backend"),
    ("thinfs.fuse.operations", "import thinfs.userspace.devices", "thinfs.userspace.devices"),
    ("thinfs.dmsetup.asking", "from thinfs.userspace import devices", "thinfs.userspace.devices"),
    ("thinfs.server.server", "from thinfs.userspace import devices", "thinfs.userspace.devices"),
    ("thinfs.persistent.btree", "from construct import Struct", "construct"),
    ("thinfs.ondisk.thin", "import os", "os"),
    ("thinfs.ondisk.thin", "from thinfs.dm import table", "thinfs.dm.table"),
    ("thinfs.tools.check", "import trio", "trio"),
    ("kernel_backend.backend", "import thinfs.blockdev", "thinfs.blockdev"),
    ("kernel_backend.guest_agent", "import trio", "trio"),
    ("thinfs.dm.ioctl", "from thinfs.errors import ThinfsError", "thinfs.errors"),
    *(
        (f"kernel_backend.{one}", "from thinfs.errors import ThinfsError", "thinfs.errors")
        for one in (
            "guest_agent",
            "batch",
            "device_mapper",
            "device_nodes",
            "control",
            "guest_loops",
            "block_io",
        )
    ),
]
CIRCLES = [
    ("thinfs.pool.modes", "thinfs.pool.pool"),
    ("thinfs.persistent.block_manager", "thinfs.persistent.btree"),
    ("kernel_backend.block_io", "kernel_backend.batch"),
]


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("planted")
    ignore = shutil.ignore_patterns("__pycache__", "*.so")
    for package in ("thinfs", "kernel_backend"):
        shutil.copytree(TOP / package, copy / package, ignore=ignore)
    (copy / "tests/house").mkdir(parents=True)
    for file in ("pyproject.toml", "tests/__init__.py", "tests/house/__init__.py", "tests/house/rooms_contract.py"):
        shutil.copy(TOP / file, copy / file)
    return copy


def lint(tree: Path) -> tuple[int, str]:
    run = subprocess.run([LINT, "--no-logo"], cwd=tree, capture_output=True, text=True, timeout=60)
    return run.returncode, run.stdout + run.stderr


def lint_with(tree: Path, module: str, line: str) -> tuple[int, str]:
    file = tree / (module.replace(".", "/") + ".py")
    before = file.read_text()
    try:
        file.write_text(before + line + "\n")
        return lint(tree)
    finally:
        file.write_text(before)


# (module it is planted in, what it imports from a floor above or beside it)
UPWARDS = [("modes", "state"), ("thin", "pending"), ("discards", "new_mappings"), ("thin_device", "metadata")]


def test_the_tree_as_it_is_is_kept(tree: Path) -> None:
    status, text = lint(tree)
    assert status == 0, text


@pytest.mark.parametrize(("module", "line", "named"), PLANTED)
def test_a_planted_import_is_refused(tree: Path, module: str, line: str, named: str) -> None:
    status, text = lint_with(tree, module, line)
    assert status == 1
    assert f"- {module} imports {named}\n" in text


@pytest.mark.parametrize(("module", "other"), UPWARDS)
def test_an_import_of_a_floor_that_is_not_below_is_refused(tree: Path, module: str, other: str) -> None:
    status, text = lint_with(tree, f"thinfs.pool.{module}", f"import thinfs.pool.{other}")
    assert status == 1
    assert f"thinfs.pool.{module} is not allowed to import thinfs.pool.{other}" in text


@pytest.mark.parametrize(("module", "other"), CIRCLES)
def test_a_circle_is_refused_even_where_type_checking_hides_it(tree: Path, module: str, other: str) -> None:
    status, text = lint_with(tree, module, f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import {other}")
    assert status == 1
    assert f"No cycles are allowed in {module.rpartition('.')[0]}." in text


def test_an_import_in_the_package_that_holds_all_rooms_is_refused(tree: Path) -> None:
    status, text = lint_with(tree, "thinfs.__init__", "import trio")
    assert status == 1
    assert "- thinfs imports trio\n" in text


def test_a_module_without_a_row_is_refused(tree: Path) -> None:
    new = tree / "thinfs/party"
    new.mkdir()
    try:
        (new / "__init__.py").touch()
        status, text = lint(tree)
    finally:
        shutil.rmtree(new)
    assert status == 1
    assert "- thinfs.party: no row in pyproject.toml says what it may import\n" in text


def test_a_row_for_what_is_not_there_is_refused(tree: Path) -> None:
    config = tree / "pyproject.toml"
    before = config.read_text()
    try:
        config.write_text(before.replace('"thinfs.units |', '"thinfs.party | | | *",\n"thinfs.units |'))
        status, text = lint(tree)
    finally:
        config.write_text(before)
    assert status == 1
    assert "- thinfs.party: in a row, but there is no such module\n" in text
