"""A campaign goes on whatever a history does to its process, and tells what it was."""

import json
from pathlib import Path

import pytest

from . import campaign, sweep
from .campaign import Outcome
from .hunt import PLANTED, Task, cases

NR_SEEDS = 3


def ran(monkeypatch: pytest.MonkeyPatch, life: str, *, silence: float = 60, kernels: tuple[str, ...] = ()) -> Outcome:
    monkeypatch.setenv(PLANTED, f"{__package__}.planted_lives:{life}")
    return campaign.run(Task(kernels, ("plain",), 1, NR_SEEDS, 100), silence=silence)


def test_an_exception_in_the_engine_is_a_finding_with_its_shrunk_script(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = ran(monkeypatch, "raises")
    assert outcome.sequences == NR_SEEDS
    finding = outcome.findings[0]
    assert "create_snap 3" in finding.differences[0]
    assert (finding.variant, finding.kernel) == ("plain", "none")
    assert len(finding.operations) <= 4
    assert "create_snap 3" in finding.script


@pytest.mark.parametrize(
    ("life", "says"),
    [
        ("crashes", "the process died: SIGKILL"),
        ("sleeps", "no answer for 8 s: the process was ended"),
        ("runs_in_a_circle", "create_snap"),  # ended by its limit, answered as any unknown exception: EIO
    ],
)
def test_the_end_of_a_process_is_a_finding_and_the_next_history_is_done(
    monkeypatch: pytest.MonkeyPatch, life: str, says: str
) -> None:
    outcome = ran(monkeypatch, life, silence=8)
    assert outcome.sequences == NR_SEEDS
    assert any(says in finding.differences[0] for finding in outcome.findings), outcome.findings


def test_a_bio_that_never_completes_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = ran(monkeypatch, "forgets_a_bio")
    assert "process" not in outcome.findings[0].differences[0]  # its own limit ended it
    assert outcome.sequences == NR_SEEDS
    assert [finding.variant for finding in outcome.findings], outcome


def test_a_guest_that_dies_is_a_finding_and_another_one_boots(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = ran(monkeypatch, "kills_the_guest", kernels=("6.1",))
    assert outcome.sequences == NR_SEEDS
    assert [finding.seed for finding in outcome.findings] == [2]
    assert outcome.findings[0].differences[0].startswith("6.1: ")


def test_a_task_done_again_is_the_same_and_goes_on_where_a_process_ended() -> None:
    task = Task(("6.1", "7.2"), ("plain", "wrap"), 5, 3, 1)
    assert list(cases(task)) == list(cases(task))
    assert len(list(cases(task))) == 12
    later = Task(("6.1", "7.2"), ("plain", "wrap"), 5, 3, 1, done=4)
    assert list(cases(later)) == list(cases(task))[4:]


def test_the_command_writes_its_results_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    words = ["--backend", "none", "--once", "--seed", "7", "--variant", "plain", "--json", str(file)]
    assert sweep.main(words) == 0
    assert capsys.readouterr().out.startswith("seeds from 7: 1 sequences, ")
    results = json.loads(file.read_text())
    assert (results["sequences"], results["findings"], results["states"]) == (1, [], 1)


def test_somebody_elses_backend_is_held_against_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--backend", f"{__package__}.example_backend:other_engine", "--once", "--seed", "7", "--variant", "plain"]
    assert sweep.main(words) == 0
    assert sweep.main([words[0], f"{__package__}.example_backend:forgetful", *words[2:]]) == 1
    out = capsys.readouterr().out
    assert f"variant plain, seed 7, {__package__}.example_backend:forgetful:" in out
    assert 'dmsetup message pool 0 "delete' in out


@pytest.mark.parametrize("name", ["kernel2.4", "nonsense", "os:nothing", "no.module:x"])
def test_a_backend_that_is_not_there_is_refused_in_a_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--backend", name, "--once"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
