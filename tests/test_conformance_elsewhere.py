"""The conformance suite where it is not at home: from an installed wheel, and on the local kernel of a guest."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from kernel_backend.runner import Guest
from kernel_backend.uml import AGENT_PYTHON, KERNEL_6_1, KERNEL_6_12, GuestKernel

CHECKOUT = Path(__file__).parents[1]
SECONDS = 900
BUILD_READS = (
    "thinfs", "kernel_backend", "scripts", "tests", "pyproject.toml", "setup.py", "README.md", "LICENSE",
)  # fmt: skip


@pytest.mark.parametrize("kernel", [KERNEL_6_1, KERNEL_6_12], ids=lambda kernel: f"kernel{kernel.name}")
def test_the_suite_passes_on_the_local_kernel_of_a_guest(kernel: GuestKernel) -> None:
    if kernel.missing is not None:
        pytest.fail(kernel.missing)
    with Guest(kernel, memory_mb=768, images=[1 << 20], call_timeout=SECONDS + 10) as guest:
        version = guest.shell([AGENT_PYTHON, "-c", "import sys; print(*sys.version_info[:2])"]).stdout.split()
        if version != [str(number) for number in sys.version_info[:2]]:
            pytest.skip(f"{AGENT_PYTHON} is Python {'.'.join(version)}, and trio is installed for another")
        path = f"{CHECKOUT}:{Path(trio.__file__).parents[1]}"
        variables = [f"PYTHONPATH={path}", "PYTHONDONTWRITEBYTECODE=1", "TMPDIR=/run"]
        program = "from thinfs.cli.main import main; main()"
        command = ["env", *variables, AGENT_PYTHON, "-c", program, "conformance", "--backend", "kernel", "-q"]
        done = guest.shell(command, timeout=SECONDS)
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 300


def test_a_wheel_carries_the_suite_and_runs_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in BUILD_READS:
        copy = shutil.copytree if (CHECKOUT / name).is_dir() else shutil.copy
        (source / name).parent.mkdir(exist_ok=True)
        copy(CHECKOUT / name, source / name)
    build = [sys.executable, "setup.py", "-q", "build", "--build-lib", str(tmp_path / "built")]
    interpreted = {**os.environ, "THINFS_PURE": "1"}  # compiling takes a minute: tests/house/test_compiled.py
    subprocess.run(build, cwd=source, check=True, capture_output=True, stdin=subprocess.DEVNULL, env=interpreted)
    shutil.rmtree(source)
    done = subprocess.run(
        [sys.executable, "-c", "from thinfs.cli.main import main; main()", "conformance", "-q", "-k", "creation"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "built"), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
