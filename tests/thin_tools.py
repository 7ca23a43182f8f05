"""thin-provisioning-tools as judges: 0.9.0 and 1.1.0, fetched by `kernel_backend.fetch`, and what this machine has.

A test names the version that it holds thinfs against; what is installed is asked only what must hold for any version.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Final

from kernel_backend import judges

V0_9_0: Final = "thin-tools-0.9.0"
V1_1_0: Final = "thin-tools-1.1.0"
VERSIONS: Final = (V0_9_0, V1_1_0)


def judge(tool: str, version: str = V0_9_0) -> Path:
    """The program; FileNotFoundError says how to get it."""
    return judges.program(version, tool)


def installed(tool: str) -> Path | None:
    """This machine's own, of any version."""
    found = shutil.which(tool, path="/usr/sbin:/sbin") or shutil.which(tool)
    return Path(found) if found else None


def answer(tool: str, *arguments: str | Path, version: str = V0_9_0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [judge(tool, version), *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )


def accepted(metadata: Path | str) -> None:
    """thin_check 0.9.0 finds nothing; or AssertionError with what it says."""
    done = answer("thin_check", metadata)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def thin_checks() -> list[Path]:
    return [judge("thin_check", version) for version in VERSIONS]


def version_of(program: Path) -> str:
    return subprocess.run([program, "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]
