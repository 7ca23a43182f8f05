"""`thinfs differential`, in a checkout `make differential SECONDS=1800`: histories of all variants, until time is up.

Prints every difference with its shrunk script, and the totals; exit status 1 if any was found, 2 for bad words.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from kernel_backend.uml import KERNELS

from . import campaign, foreign
from .campaign import Outcome
from .hunt import Finding, Task
from .variants import VARIANTS

TASK_SECONDS: Final = 60.0
SEEDS_APART: Final = 1_000_000  # between the tasks of many workers: none does so many


class Refused(Exception):
    """Bad words, in a line."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="thinfs differential",
        description="Hold the engine against a kernel, or against a backend of your own, in long histories.",
    )
    parser.add_argument(
        "--backend",
        action="append",
        metavar="NAME",
        help=f"{', '.join(f'kernel{name}' for name in KERNELS)}, module:object, or none for the model alone; may be "
        "given several times (default: every kernel that is there)",
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="the first (default: the time)")
    parser.add_argument("--once", action="store_true", help="one seed, to look at a report again")
    parser.add_argument(
        "--variant", action="append", choices=sorted(VARIANTS), metavar="NAME", help="; ".join(VARIANTS)
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="of a Dask cluster on this machine")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, its workers with `kernel=1`")
    return parser


def backends(names: Sequence[str] | None) -> list[str]:
    if not names:
        there = [name for name, kernel in KERNELS.items() if kernel.missing is None]
        if not there:
            raise Refused(next(iter(KERNELS.values())).missing or "no kernel")
        return there
    chosen = []
    for word in names:
        name = word.removeprefix("kernel")
        if word == "none":
            chosen.append(word)
        elif ":" in word:
            try:
                foreign.loaded(word)
            except (ImportError, AttributeError, ValueError) as error:
                raise Refused(f"--backend {word}: {error}") from None
            chosen.append(word)
        elif name not in KERNELS or name == word:
            raise Refused(f"--backend {word}: there are {', '.join(f'kernel{name}' for name in KERNELS)}")
        elif (line := KERNELS[name].missing) is not None:
            raise Refused(f"--backend {word}: {line}")
        else:
            chosen.append(name)
    return chosen


def told(finding: Finding) -> str:
    where = f"variant {finding.variant}, seed {finding.seed}, {finding.kernel}"
    return "\n".join([f"{where}:", *finding.differences, finding.script])


def main(words: Sequence[str]) -> int:
    options = parser().parse_args(words)
    try:
        names = backends(options.backend)
    except Refused as error:
        print(f"thinfs differential: {error}", file=sys.stderr)
        return 2
    variants = [
        name
        for name in options.variant or VARIANTS
        if not any(":" in other for other in names) or foreign.may_run(VARIANTS[name])
    ]
    first = int(time.time()) if options.seed is None else options.seed
    nr_seeds = 1 if options.once else SEEDS_APART
    seconds = 1e9 if options.once else options.seconds
    task = Task(tuple(names), tuple(variants), first, nr_seeds, seconds)
    say: Callable[[Finding], None] = lambda finding: print(told(finding), flush=True)  # noqa: E731
    if options.workers or options.scheduler:
        try:
            from . import cluster
        except ImportError as error:
            print(f"thinfs differential: {error.name} is not installed: pip install 'thinfs[cluster]'", file=sys.stderr)
            return 2
        outcome = cluster.run(task, options.workers, options.scheduler, TASK_SECONDS, say)
    else:
        outcome = campaign.run(task, on_finding=say)
    print(summary(outcome, first))
    if options.json is not None:
        options.json.write_text(json.dumps({"task": vars_of(task), **outcome.as_json()}, indent=1) + "\n")
    return 1 if outcome.findings else 0


def vars_of(task: Task) -> dict[str, object]:
    return {name: getattr(task, name) for name in task.__slots__}


def summary(outcome: Outcome, first: int) -> str:
    minutes = outcome.seconds / 60
    return (
        f"seeds from {first}: {outcome.sequences} sequences, {outcome.operations} operations, {len(outcome.states)} "
        f"different ends, {len(outcome.findings)} findings, {minutes:.1f} minutes, "
        f"{outcome.operations / max(minutes, 1e-9):.0f} operations a minute"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
