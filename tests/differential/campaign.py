"""A campaign: tasks, each in a process that is watched, and what they found, as JSON.

Promises: it goes on whatever a history does to its process: an exception, an endless loop, a crash, a guest that dies
or stops answering is a finding with its variant, seed and kernel. A task done again gives the same again.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from .hunt import Finding, Task, cases

SILENCE_SECONDS: Final = 240.0  # a history, or the shrinking of one, that takes longer is ended
_ROOT: Final = Path(__file__).parents[2]


@dataclass(slots=True)
class Outcome:
    """Of a task, or of many."""

    sequences: int = 0
    operations: int = 0
    seconds: float = 0.0
    states: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        self.sequences += other.sequences
        self.operations += other.operations
        self.seconds += other.seconds
        self.states |= other.states
        self.findings += other.findings

    def as_json(self) -> dict[str, Any]:
        return {
            "sequences": self.sequences,
            "operations": self.operations,
            "seconds": round(self.seconds, 1),
            "states": len(self.states),
            "findings": [asdict(finding) for finding in self.findings],
        }


def run(
    task: Task, *, silence: float = SILENCE_SECONDS, on_finding: Callable[[Finding], None] = lambda _: None
) -> Outcome:
    """The whole task, in as many processes as it takes."""
    outcome, begin = Outcome(), time.monotonic()
    while True:
        left = task.seconds - (time.monotonic() - begin)
        if left <= 0 or next(cases(task), None) is None:
            break
        at = _run_process(replace(task, seconds=left), outcome, silence, on_finding)
        if at is None:
            break
        task = replace(task, done=at + 1)
    outcome.seconds = time.monotonic() - begin
    return outcome


def _run_process(task: Task, outcome: Outcome, silence: float, on_finding: Callable[[Finding], None]) -> int | None:
    """Until it ends; the number of the history that ended it otherwise, None where it came to its end."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.hunt", json.dumps(asdict(task))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    errors: list[str] = []
    readers = [
        threading.Thread(target=_read, args=(process.stdout, lines.put), daemon=True),
        threading.Thread(target=_read, args=(process.stderr, errors.append), daemon=True),
    ]
    for reader in readers:
        reader.start()
    begun: dict[str, Any] = {}
    why = ""
    try:
        while line := _next(lines, silence):
            event = json.loads(line)
            if "begun" in event:
                begun = event
            elif "done" in event:
                outcome.sequences += 1
                outcome.operations += event["operations"]
                outcome.states.update(event["states"])
                if event["finding"] is not None:
                    outcome.findings.append(Finding(**event["finding"]))
                    on_finding(outcome.findings[-1])
            elif "ended" in event:
                return None
        why = "" if line is not None else f"no answer for {silence:g} s: the process was ended"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
        for reader in readers:
            reader.join(5)
        process.stdout.close()
        process.stderr.close()
    if not begun:
        raise RuntimeError(f"the process of the campaign did not begin: exit {code}: {''.join(errors)[-500:]}")
    why = why or f"the process died: {_end(code)}: {(errors or ['no message'])[-1].strip()}"
    finding = Finding(begun["variant"], begun["seed"], begun["kernel"], [why])
    outcome.sequences += 1
    outcome.findings.append(finding)
    on_finding(finding)
    return int(begun["begun"])


def _end(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit {code}"


def _read(stream: Any, put: Callable[[str], None]) -> None:
    for line in stream:
        put(line)
    put("")


def _next(lines: "queue.SimpleQueue[str]", silence: float) -> str | None:
    """ "" at the end of the stream, None when nothing came."""
    try:
        return lines.get(timeout=silence)
    except queue.Empty:
        return None
