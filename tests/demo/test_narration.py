"""The narrator: what is shown, what is held against what, and that nothing runs on behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from thinfs.cli.narration import Narrator, StepFailed


@pytest.fixture
def narrator(tmp_path: Path) -> Narrator:
    return Narrator(tmp_path, os.environ)


def test_a_line_and_its_answer_are_shown(narrator: Narrator, capsys: pytest.CaptureFixture[str]) -> None:
    assert narrator.sh("echo one; echo two >&2").text == "one\ntwo\n"
    assert capsys.readouterr().out == "$ echo one; echo two >&2\n  one\n  two\n"


def test_a_line_that_fails_is_named_with_its_status(narrator: Narrator) -> None:
    with pytest.raises(StepFailed, match=r"^exit 3: exit status 3, expected 0$"):
        narrator.sh("exit 3")


def test_a_line_that_prints_something_else_is_named_with_both(narrator: Narrator) -> None:
    with pytest.raises(StepFailed, match=r"^echo no: printed 'no\\n', expected 'yes\\n'$"):
        narrator.sh("echo no", prints="yes\n")


def test_progress_that_was_wiped_out_with_backspaces_is_not_shown(narrator: Narrator) -> None:
    assert narrator.sh(r"printf 'writing: 1/2\b\b\b   \b\b\bdone\n'").text == "writing: done\n"


def test_an_interrupted_line_is_ended_with_everything_it_started(tmp_path: Path) -> None:
    program = (
        "import os, pathlib\n"
        "from thinfs.cli.narration import Narrator\n"
        "Narrator(pathlib.Path('.'), os.environ).sh('cat fifo & echo > started; cat fifo')\n"
    )
    os.mkfifo(tmp_path / "fifo")
    os.mkfifo(tmp_path / "started")
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.DEVNULL)
    with process:
        (tmp_path / "started").read_text()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
    # A reader of the fifo lets this open succeed; what was told to end may take a moment to.
    deadline = time.monotonic() + 10
    with pytest.raises(OSError, match="No such device"):
        while time.monotonic() < deadline:
            os.close(os.open(tmp_path / "fifo", os.O_WRONLY | os.O_NONBLOCK))
