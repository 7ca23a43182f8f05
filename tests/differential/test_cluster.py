"""Campaigns on Dask workers: two of them, and one that dies. Needs the extra `cluster`."""

import os
import signal
from collections.abc import Iterator

import pytest

from . import campaign
from .hunt import Finding, Task

pytest.importorskip("distributed", reason="the extra `cluster` is not installed")

from . import cluster

pytestmark = pytest.mark.filterwarnings("ignore")  # of the workers' ends, in distributed and tornado


@pytest.fixture
def findings() -> Iterator[list[Finding]]:
    yield []


def test_two_workers_do_different_seeds(findings: list[Finding], capsys: pytest.CaptureFixture[str]) -> None:
    task = Task((), ("plain",), 100, 3, 60)
    outcome = cluster.run(task, 2, None, 60, findings.append)
    assert (outcome.sequences, findings) == (6, [])
    said = capsys.readouterr().out
    assert "task from seed 100: 3 sequences" in said
    assert "task from seed 103: 3 sequences" in said


def test_a_worker_that_dies_is_a_finding_and_its_task_is_not_tried_again(
    findings: list[Finding], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "run_task", dies)
    outcome = cluster.run(Task((), ("plain",), 100, 3, 60), 2, None, 60, findings.append)
    assert [finding.differences[0].split(":")[0] for finding in findings] == ["a worker died or its task failed"]
    assert findings[0].seed == 100
    assert outcome.sequences == 3  # of the other worker


def dies(task: Task) -> campaign.Outcome:
    if task.first_seed == 100:
        os.kill(os.getpid(), signal.SIGKILL)
    return campaign.run(task)
