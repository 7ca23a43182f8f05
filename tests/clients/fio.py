"""fio with verification, and its verdict."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.clients.conftest import SECONDS


def verify(target: Path, directory: Path, *options: str, name: str = "verify") -> dict[str, Any]:
    """Run one job that reads back what it wrote; fails on any error. The job's part of fio's JSON."""
    command = ["fio", f"--name={name}", f"--filename={target}", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]
    command += ["--output-format=json", "--randrepeat=0", "--group_reporting", "--allow_file_create=0", *options]
    done = subprocess.run(
        command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}: exit {done.returncode}: {done.stderr}{done.stdout[-2000:]}"
    answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    for job in answer["jobs"]:
        assert job["error"] == 0, done.stdout
    (job,) = answer["jobs"]
    result: dict[str, Any] = job
    assert result["write"]["total_ios"] > 0
    return result
