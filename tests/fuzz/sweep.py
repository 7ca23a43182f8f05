"""`make fuzz`: damaged metadata with right checksums, hostile lines of the socket, Docker's files bent, by the
thousand; every outcome is a ThinfsError or success.

Promises: prints each seed that fails, its damage and where it came out, then the counts; exit 1 on any failure. The
same seeds do the same on every machine.
"""

import argparse
import logging
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz import docker_inputs, inputs
from tests.fuzz.damage import damage
from tests.fuzz.exercise import TooManySteps, exercise
from tests.fuzz.pools import NAMES, pool
from tests.fuzz.served import serve

_SHOWN = 20


@dataclass
class Result:
    nr_images: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)  # where it came out, what it was


def one(name: str, seed: int, result: Result) -> None:
    sound = pool(name)
    done = damage(sound, seed)
    result.nr_images += 1
    try:
        outcomes = [*exercise(sound, done.blocks, seed), *serve(sound, done.blocks, seed)]
    except (Exception, TooManySteps) as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/thinfs/" in frame.filename]
        where = f"{ours[-1].filename.rpartition('/thinfs/')[2]}:{ours[-1].name}" if ours else "?"
        result.failures.append(
            (f"{type(error).__name__} in {where}", f"{name} {seed}: {'; '.join(done.words)}: {error}")
        )
        return
    refused = [line for line in outcomes if not line.endswith(": done")]
    result.outcomes["images with a refusal" if refused else "images where all went well"] += 1
    for line in refused:
        result.outcomes[f"refusals, {line.split(': ')[1]}"] += 1
    result.outcomes["calls"] += len(outcomes)


def _part(name: str, seeds: range) -> Result:
    logging.disable(logging.CRITICAL)
    result = Result()
    for seed in seeds:
        one(name, seed, result)
    return result


def _inputs(run: Callable[[range, Path], inputs.Result], seeds: range) -> Result:
    logging.getLogger("thinfs").propagate = False
    with tempfile.TemporaryDirectory() as work:
        found = run(seeds, Path(work) / "inputs")
    return Result(0, found.outcomes, found.failures)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.sweep")
    parser.add_argument("--images", type=int, default=2000, help="of each of the pools")
    parser.add_argument(
        "--inputs", type=int, default=4000, help="lines of the socket; a tenth as many of Docker's files"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first image")
    parser.add_argument("--pool", action="append", choices=NAMES, help="only this one")
    parser.add_argument("--jobs", type=int, default=2)
    wanted = parser.parse_args()
    start, total = time.monotonic(), Result()
    with ProcessPoolExecutor(wanted.jobs) as processes:
        parts = [
            processes.submit(_part, name, range(begin, min(begin + 50, wanted.seed + wanted.images)))
            for name in wanted.pool or NAMES
            for begin in range(wanted.seed, wanted.seed + wanted.images, 50)
        ]
        for run, nr in ((inputs.run, wanted.inputs), (docker_inputs.run, wanted.inputs // 10)):
            parts += [
                processes.submit(_inputs, run, range(begin, min(begin + 200, wanted.seed + nr)))
                for begin in range(wanted.seed, wanted.seed + nr, 200)
            ]
        for part in parts:
            found = part.result()
            total.nr_images += found.nr_images
            total.outcomes.update(found.outcomes)
            total.failures += found.failures
    for where, nr in Counter(where for where, _ in total.failures).most_common():
        print(f"FAILED {nr:6} {where}")
    for where, what in total.failures[:_SHOWN]:
        print(f"FAILED {where}: {what}")
    for name, count in sorted(total.outcomes.items()):
        print(f"{count:10} {name}")
    print(f"{total.nr_images} images, {len(total.failures)} failures, {time.monotonic() - start:.0f} s")
    return 1 if total.failures else 0


if __name__ == "__main__":
    sys.exit(main())
