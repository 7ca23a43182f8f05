"""Some of the hostile inputs of `make fuzz`, and that a bug would be seen."""

from pathlib import Path

import pytest

from tests.fuzz import docker_inputs, inputs
from thinfs.userspace.devices import DeviceMapper

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_lines_of_the_socket_are_answered_with_a_value_or_an_error_of_ours(tmp_path: Path) -> None:
    result = inputs.run(range(200), tmp_path)
    assert result.failures == []
    assert result.nr_inputs == 200
    assert {"ok", "errno 22", "errno 6"} <= result.outcomes.keys()


def test_docker_s_files_may_hold_anything(tmp_path: Path) -> None:
    result = docker_inputs.run(range(30), tmp_path / "docker")
    assert result.failures == []
    assert result.nr_inputs == 30


def test_a_bug_in_the_server_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def with_a_bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(DeviceMapper, "info", with_a_bug)
    assert any("ZeroDivisionError" in failure for failure, _ in inputs.run(range(100), tmp_path).failures)


def test_a_bug_in_the_reading_of_docker_s_files_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thinfs.docker.pool.user_of", lambda _docker: 1 // 0)
    assert docker_inputs.run(range(1), tmp_path / "docker").failures
