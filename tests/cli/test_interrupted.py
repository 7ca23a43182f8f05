"""Ctrl-C, and an output that takes nothing: one line and 130 or 1, never a traceback, in every command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import SECONDS, Machine
from thinfs.cli.main import COMMANDS, to_the_end

FULL = "/dev/full"


def run_into(machine: Machine, output: str, *words: str, module: str = "main") -> subprocess.CompletedProcess[str]:
    with open(output, "w") as out:
        return subprocess.run(
            [sys.executable, "-m", f"thinfs.cli.{module}", *words],
            stdout=out,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=dict(machine.environment),
            timeout=SECONDS,
        )


@pytest.mark.parametrize(
    "words", [["--version"], ["help"], *([name, "--help"] for name in COMMANDS if name != "dmsetup")]
)
def test_a_full_output_is_one_line(machine: Machine, words: list[str]) -> None:
    done = run_into(machine, FULL, *words)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("standard output: No space left on device\n")


@pytest.mark.parametrize("words", [["ls"], ["help"], ["targets"]])
def test_the_drop_in_says_that_its_output_is_full(faked: Machine, words: list[str]) -> None:
    done = run_into(faked, FULL, *words, module="dmsetup")
    assert (done.stderr, done.returncode) == (
        "thinfs: standard output: No space left on device\nCommand failed.\n",
        1,
    )


def test_a_pipe_that_nobody_reads_is_no_line_at_all(faked: Machine) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        for module, words in (("dmsetup", ["ls"]), ("main", ["help"]), ("main", ["check", "--help"])):
            done = run_into(faked, f"/proc/self/fd/{writer}", *words, module=module)
            assert (done.stderr, done.returncode) == ("", 141)
    finally:
        os.close(writer)


def test_ctrl_c_at_the_drop_in_ends_it_without_a_word(faked: Machine) -> None:
    faked.prints("create", "x", "--table", "0 8 error")
    command = [sys.executable, "-m", "thinfs.cli.dmsetup", "wait", "x"]
    client = subprocess.Popen(command, env=dict(faked.environment), stderr=subprocess.PIPE, text=True)
    _interrupt_when_it_waits(client)
    assert client.stderr is not None
    assert (client.stderr.read(), client.wait(SECONDS)) == ("", 130)
    client.stderr.close()
    faked.prints("remove", "x")


def test_ctrl_c_while_a_command_waits(machine: Machine) -> None:
    program = (
        "import time; from thinfs.cli.main import to_the_end; "
        "raise SystemExit(to_the_end('thinfs x', lambda: time.sleep(60)))"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", program], env=dict(machine.environment), stderr=subprocess.PIPE, text=True
    )
    _interrupt_when_it_waits(client)
    assert client.stderr is not None
    assert (client.stderr.read(), client.wait(SECONDS)) == ("thinfs x: interrupted\n", 130)
    client.stderr.close()


def _interrupt_when_it_waits(client: subprocess.Popen[str]) -> None:
    for _ in range(SECONDS * 20):
        time.sleep(0.05)
        # recv(2), or clock_nanosleep(2): the interpreter is up and waits
        if Path(f"/proc/{client.pid}/syscall").read_text().split()[0] in ("45", "47", "230"):
            break
    client.send_signal(signal.SIGINT)


def test_an_interrupt_inside_a_nursery_is_one_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command() -> int:
        raise BaseExceptionGroup("of a nursery", [KeyboardInterrupt()])

    monkeypatch.setattr(os, "dup2", lambda *_: None)
    assert to_the_end("thinfs x", command) == 130
    assert capsys.readouterr().err == "thinfs x: interrupted\n"
