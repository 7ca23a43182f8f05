"""The drop-in's start-up: one call, and a hundred in a row, beside an empty Python and the real dmsetup.

Promises: a server of its own with one pool; the calls change nothing (`info`). The real dmsetup stands in with a
command that fails at once where the kernel has no device-mapper: its start-up is all of that.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Final

from bench.front import directory_on
from bench.rounds import Row
from bench.subjects import SCRIPTS, Thinfs

PYTHON: Final = "python3 -S -c pass"
REAL: Final = "dmsetup"
DROP_IN: Final = "thinfs"
_SECTION: Final = "drop-in"


def run(rounds: int, say: Callable[[str], None]) -> list[Row]:
    one = Row(_SECTION, "start to answer", "ms", False)
    hundred = Row(_SECTION, "a hundred in a row", "ms", False)
    directory = directory_on("tmpfs")
    try:
        subject = Thinfs(directory, 64 << 20)
        try:
            env = {**os.environ, "THINFS_MOUNT": str(directory / "thinfs")}
            commands: dict[str, list[str]] = {
                DROP_IN: [str(SCRIPTS / "thinfs-dmsetup"), "info", "volume"],
                PYTHON: [sys.executable, "-S", "-c", "pass"],
            }
            real = shutil.which("dmsetup", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
            if real is not None:
                commands[REAL] = [real, "info", "no-such-device"]
            for number in range(rounds):
                say(f"drop-in, round {number + 1} of {rounds}")
                for name, command in commands.items():
                    singles = sorted(_milliseconds(command, env) for _ in range(9))
                    one.values.setdefault(name, []).append(singles[4])
                for name, command in commands.items():
                    hundred.values.setdefault(name, []).append(sum(_milliseconds(command, env) for _ in range(100)))
        finally:
            subject.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return [one, hundred]


def _milliseconds(command: list[str], env: dict[str, str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)
    return (time.perf_counter() - begin) * 1e3
