"""A server, and programs under `thinfs run` on it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guests import booted_6_1, booted_6_12, guest6_1, guest6_12
from tests.system.conftest import Server, server

__all__ = ["Run", "booted_6_1", "booted_6_12", "guest6_1", "guest6_12", "run", "server"]

TOP = Path(__file__).resolve().parents[2]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(server: Server) -> Run:
    """A command under `thinfs run`, with options of thinfs run before the `--`."""

    def do(*words: str, options: tuple[str, ...] = (), status: int = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            [sys.executable, "-m", "thinfs.cli.main", "run", *options, "--", *words],
            cwd=TOP,
            env=server.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert done.returncode == status, f"{' '.join(words)}: exit {done.returncode}: {done.stdout}"
        return done

    return do
