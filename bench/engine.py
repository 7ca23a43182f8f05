"""The engine's plan: which cases at which sizes, each in a process of its own, round after round.

Promises: rounds go over all cases before any case is measured again; a metric of a case becomes one row per case,
whose "subjects" are the sizes. Never: measures in this process.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from bench import metadata_images
from bench.rounds import Row
from bench.subjects import TOP

MAPPINGS: Final = (1_000, 100_000, 1_000_000, 10_000_000)
FULL: Final[Mapping[str, Sequence[int]]] = {
    "mapped": MAPPINGS,
    "changes": MAPPINGS,
    "deletion": MAPPINGS,
    "check": MAPPINGS,
    "depth": (1, 10, 100, 1000),
    "volumes": (1, 100, 10_000),
}
QUICK: Final[Mapping[str, Sequence[int]]] = {
    "mapped": (1_000, 1_000_000),
    "changes": (1_000, 1_000_000),
    "deletion": (1_000, 1_000_000),
    "depth": (1, 100),
    "volumes": (1, 1000),
}
TITLES: Final = {
    "mapped": "mapped blocks, by mappings of the volume",
    "changes": "changes, by mappings of the volume",
    "deletion": "deletion of a volume, by its mappings",
    "check": "checking a pool, by its mappings",
    "depth": "snapshots of snapshots, by depth of the chain",
    "volumes": "many volumes, by their number",
}


def run(plan: Mapping[str, Sequence[int]], rounds: int, say: Callable[[str], None]) -> list[Row]:
    for nr_mappings in sorted({size for case in plan for size in plan[case] if case not in ("depth", "volumes")}):
        say(f"engine: metadata of {nr_mappings} mappings")
        metadata_images.image(nr_mappings)
    rows: dict[tuple[str, str], Row] = {}
    for number in range(rounds):
        for case, sizes in plan.items():
            say(f"engine: {TITLES[case]}, round {number + 1} of {rounds}")
            for size in sizes:
                for metric, value in measure(case, size).items():
                    name, _, unit = metric.rpartition(", ")
                    row = rows.setdefault((case, metric), Row(f"engine: {TITLES[case]}", name, unit, False))
                    row.values.setdefault(str(size), []).append(value)
    return list(rows.values())


def measure(case: str, size: int, python: Path = Path(sys.executable), top: Path = TOP) -> dict[str, float]:
    """One case of the tree at `top`, by its own code, in a process of its own: metric -> value."""
    directory = Path(tempfile.mkdtemp(prefix="thinfs-bench-", dir=metadata_images.on_memory()))
    command = [str(python), "-m", "bench.engine_cases", case, str(size), str(directory)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=top, timeout=300)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout)
    return result
