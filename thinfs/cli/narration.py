"""A walkthrough that shows its work: each shell line is printed, run, and held to what it ought to answer.

Promises: a line runs in its own process group and is ended with it when the walkthrough is interrupted, so
nothing runs on behind; the first answer that differs from the expected one is a StepFailed. Never: reads
from the terminal, hides an answer.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from thinfs.errors import ThinfsError

_ANSWER_SECONDS = 180


class StepFailed(ThinfsError):
    """A step of the walkthrough answered something else than it ought to."""


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Narrator:
    """Runs shell lines in `directory` with `environment`, narrating on standard output."""

    directory: Path
    environment: Mapping[str, str]

    def say(self, text: str = "") -> None:
        print(text, flush=True)

    def heading(self, text: str) -> None:
        self.say()
        self.say(f"# {text}")

    def sh(self, line: str, *, prints: str | None = None) -> Answer:
        """Run `line`; it must exit 0 and, where `prints` is given, print exactly that."""
        self.say(f"$ {line}")
        status, answer = run_quietly(line, self.directory, self.environment)
        for shown in answer.text.splitlines():
            self.say(f"  {shown}")
        if status != 0:
            raise StepFailed(f"{line}: exit status {status}, expected 0")
        if prints is not None and answer.text != prints:
            raise StepFailed(f"{line}: printed {answer.text!r}, expected {prints!r}")
        return answer

    def check(self, what: str, got: object, expected: object) -> None:
        if got != expected:
            raise StepFailed(f"{what}: {got!r}, expected {expected!r}")


def run_quietly(line: str, directory: Path, environment: Mapping[str, str]) -> tuple[int, Answer]:
    """Exit status and answer of a shell line; standard output and standard error together."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        ["/bin/sh", "-c", line],
        cwd=directory,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=_ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        _end(process)
        raise StepFailed(f"{line}: no answer in {_ANSWER_SECONDS} seconds") from None
    except BaseException:
        _end(process)
        raise
    answer = Answer(_as_a_terminal_shows(output.decode(errors="replace")), time.perf_counter() - begun)
    return process.returncode, answer


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a whole process group: politely, and after five seconds for good."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signum)
            process.communicate(timeout=5)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
        break
    if process.stdout is not None:
        process.stdout.close()


def _as_a_terminal_shows(text: str) -> str:
    """Without the progress counts that mke2fs wipes out with backspaces."""
    if "\b" not in text:
        return text
    shown: list[str] = []
    for character in text:
        if character != "\b":
            shown.append(character)
        elif shown and shown[-1] != "\n":
            shown.pop()
    return "".join(shown)


def stop_on_signals() -> None:
    """SIGTERM and SIGHUP end the walkthrough as Ctrl-C does: through its clean-up."""

    def interrupt(signum: int, _frame: object) -> None:
        raise SystemExit(128 + signum)

    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, interrupt)


def ignore_signals() -> None:
    """While cleaning up: a second Ctrl-C must not leave half of it undone."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """What arrives inside is raised at the end of the block."""
    arrived: list[int] = []
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(signum, lambda number, _frame: arrived.append(number)) for signum in handled]
    try:
        yield
    finally:
        for signum, handler in zip(handled, before, strict=True):
            signal.signal(signum, handler)
        for number in arrived:
            signal.raise_signal(number)


def complain(message: str) -> None:
    print(f"thinfs demo: {message}", file=sys.stderr, flush=True)
