"""The house: the commands the README promises, the set-up behind them, and that the README says what is there."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from thinfs.cli.main import COMMANDS

TOP = Path(__file__).resolve().parents[1]
README = (TOP / "README.md").read_text()


def code_blocks() -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_readme_opens_with_the_two_commands() -> None:
    lines = [line.split("#")[0].strip() for line in code_blocks()[0].splitlines()]
    assert lines == ["make demo", "make test"]


def test_every_make_command_of_the_readme_has_a_rule() -> None:
    makefile = (TOP / "Makefile").read_text()
    rules = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", "\n".join(code_blocks()))) <= rules
    assert {"setup", "demo", "test", "lint", "clean"} <= rules


def test_every_path_in_the_readme_s_picture_is_there() -> None:
    picture = next(block for block in code_blocks() if block.startswith("thinfs/"))
    directory, missing = Path(), []
    for line in picture.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            directory = Path()
        path = directory / name
        if not (TOP / path).exists():
            missing.append(str(path))
        if not line.startswith(" ") and name.endswith("/"):
            directory = Path(name)
    assert missing == []


def test_every_dependency_has_its_reason_in_the_readme() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [one for extra in project["optional-dependencies"].values() for one in extra]
    names = {re.split(r"[>=<;\[ ]", requirement)[0] for requirement in wanted}
    setup = (TOP / "scripts/setup").read_text()
    for packages in re.findall(r'^\w+_packages="(.*)"$', setup, re.MULTILINE):
        names |= set(packages.split())
    rows = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    assert [name for name in sorted(names) if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", rows)] == []


def test_the_commands_of_the_readme_s_table_are_those_there_are() -> None:
    cells = re.findall(r"^\| (`thinfs .*?) \|", README, re.MULTILINE)
    assert {one for cell in cells for one in re.findall(r"`thinfs ([\w-]+)", cell)} == set(COMMANDS)


@pytest.mark.parametrize(("failing", "status"), [("", 0), ("lint", 2), ("test", 2)])
def test_ci_runs_lint_and_then_every_test_and_hides_neither_s_failure(
    tmp_path: Path, failing: str, status: int
) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(TOP / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "Makefile").write_text(
        f"lint test:\n\t@echo $@ $(ARGS) >> ran\n\t@test $@ != {failing or 'none'}\n.PHONY: lint test\n"
    )
    # This run may be one of `make test ARGS=...`, whose variables a make below it would take for its own.
    environment = {name: value for name, value in os.environ.items() if name not in ("ARGS", "MAKEFLAGS", "MAKELEVEL")}
    run = subprocess.run(
        [tmp_path / ".ci/run", "-k", "x"], env=environment, capture_output=True, timeout=60, stdin=subprocess.DEVNULL
    )
    assert (run.returncode, (tmp_path / "ran").read_text()) == (status, "lint\ntest -k x\n")


def test_the_licence_is_the_one_the_project_names() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert (TOP / "LICENSE").read_text().split()[:4] == ["Apache", "License", "Version", "2.0,"]


@pytest.fixture
def bare_machine(tmp_path: Path) -> Path:
    """A copy of the set-up on a machine of an ordinary user that has no package of ours and no sudo."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(TOP / "scripts/setup", tmp_path / "scripts/setup")
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, script in {"dpkg-query": "exit 1", "id": "echo 1000", "sudo": "exit 1", "apt-get": "exit 99"}.items():
        (stubs / name).write_text(f"#!/bin/sh\n{script}\n")
        (stubs / name).chmod(0o755)
    return tmp_path


def set_up(machine: Path, goal: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{machine}/stubs:{os.environ['PATH']}"}
    return subprocess.run(
        [machine / "scripts/setup", goal],
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def test_without_root_the_set_up_names_what_is_missing_in_one_line(bare_machine: Path) -> None:
    run = set_up(bare_machine, "demo")
    assert run.returncode == 1
    packages = "gcc libc6-dev pkg-config libfuse3-dev python3-dev python3-venv fuse3 e2fsprogs thin-provisioning-tools"
    remedy = f"as root: apt-get install --no-install-recommends {packages}"
    assert (run.stdout, run.stderr) == ("", f"set-up: missing packages: {packages} ({remedy})\n")


def test_a_goal_that_the_set_up_does_not_know_is_refused_by_name(bare_machine: Path) -> None:
    run = set_up(bare_machine, "party")
    assert (run.returncode, run.stderr) == (
        1,
        "set-up: no such goal: party (demo, test, lint, bench, engine, packages or test-on)\n",
    )


def test_tests_readme_names_every_topic_and_nothing_that_is_not_there() -> None:
    here = TOP / "tests"
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", (here / "README.md").read_text()))
    assert sorted(one for one in named if not (here / one).exists()) == []
    topics = {f"conformance/{path.name}" for path in (here / "conformance").glob("test_*.py")}
    assert sorted(topics - named) == []
