"""Many runs of the drop-in dmsetup against as many of `python3 -S -c pass`: bench/dropin_runs.py [THINS [SNAPS]]

Promises: a server and a pool of its own in a temporary directory, gone afterwards; prints ratios, judges nothing.
What containerd does for an image of many layers: create_thin messages, then snapshots (suspend, create_snap,
resume, create) that become devices: as root with a loop device each.
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_SCRIPTS = Path(sysconfig.get_path("scripts"))
_SIZE_SECTORS = 1 << 16


def seconds(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def pass_runs(count: int) -> None:
    for _ in range(count):
        subprocess.run([sys.executable, "-S", "-c", "pass"], check=True)


class Dropin:
    def __init__(self, directory: Path) -> None:
        self._environment = {**os.environ, "THINFS_MOUNT": str(directory / "mnt")}
        self.nr_runs = 0

    def __call__(self, *words: str) -> None:
        self.nr_runs += 1
        subprocess.run([_SCRIPTS / "thinfs-dmsetup", *words], check=True, env=self._environment)

    def stop(self) -> None:
        subprocess.run([_SCRIPTS / "thinfs", "stop", "--force"], check=False, env=self._environment)


def report(what: str, dropin: Dropin, run: Callable[[], None]) -> None:
    dropin.nr_runs = 0
    taken = seconds(run)
    plain = seconds(lambda: pass_runs(dropin.nr_runs))
    print(
        f"{what}: {dropin.nr_runs} runs, {taken:.2f} s; {dropin.nr_runs} of `python3 -S -c pass` {plain:.2f} s; "
        f"ratio {taken / plain:.2f}",
        flush=True,
    )


def main() -> None:
    nr_thins, nr_snaps = (int(word) for word in (*sys.argv[1:3], *("1000", "200")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory(prefix="thinfs-bench-") as name:
        directory = Path(name)
        for file, size in (("meta", 64 << 20), ("data", 1 << 30)):
            with (directory / file).open("wb") as image:
                image.truncate(size)
        dropin = Dropin(directory)
        pool, prefix = f"bench-{os.getpid()}", f"bench-{os.getpid()}"
        try:
            table = f"0 {(1 << 30) // 512} thin-pool {directory}/meta {directory}/data 128 0 1 skip_block_zeroing"
            dropin("create", pool, "--table", table)
            report("create_thin", dropin, lambda: thins(dropin, pool, nr_thins))
            dropin("create", f"{prefix}-0", "--table", f"0 {_SIZE_SECTORS} thin /dev/mapper/{pool} 0")
            report("snapshots, activated", dropin, lambda: snapshots(dropin, pool, prefix, nr_thins, nr_snaps))
            report("removal", dropin, lambda: removals(dropin, pool, prefix, nr_thins, nr_snaps))
        finally:
            dropin.stop()


def thins(dropin: Dropin, pool: str, count: int) -> None:
    for dev_id in range(count):
        dropin("message", pool, "0", f"create_thin {dev_id}")


def snapshots(dropin: Dropin, pool: str, prefix: str, first: int, count: int) -> None:
    for number in range(1, count + 1):
        dropin("suspend", f"{prefix}-0")
        dropin("message", pool, "0", f"create_snap {first + number} 0")
        dropin("resume", f"{prefix}-0")
        dropin("create", f"{prefix}-{number}", "--table", f"0 {_SIZE_SECTORS} thin /dev/mapper/{pool} {first + number}")


def removals(dropin: Dropin, pool: str, prefix: str, first: int, count: int) -> None:
    for number in range(1, count + 1):
        dropin("remove", f"{prefix}-{number}")
        dropin("message", pool, "0", f"delete {first + number}")


if __name__ == "__main__":
    main()
