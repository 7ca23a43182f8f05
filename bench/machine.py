"""What a run was measured on, for the JSON and for the line below the table: machine, kernel, versions, date."""

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from thinfs import compiled


def _first_line(*command: str) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except OSError:
        return "absent"
    lines = (run.stdout or run.stderr).splitlines()
    return lines[0].strip() if lines else "unknown"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def commit_of(top: Path) -> str:
    return _first_line("git", "-C", str(top), "describe", "--always", "--dirty")


def describe() -> dict[str, str]:
    qemu = re.search(r"version (\S+)", _first_line("qemu-storage-daemon", "--version"))
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 20} MiB",
        "load": f"{os.getloadavg()[0]:.2f}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "engine": "compiled" if compiled.in_use() else "interpreted",
        "commit": _first_line("git", "describe", "--always", "--dirty"),
        "fio": _first_line("fio", "--version"),
        "qemu-storage-daemon": qemu[1] if qemu else "absent",
        "libfuse": _first_line("pkg-config", "--modversion", "fuse3"),
        **{name: _package(name) for name in ("pyfuse3", "trio", "construct", "crc32c")},
    }
