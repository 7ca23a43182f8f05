"""`make simulation`: many histories in parallel processes, every power cut and every fault of them, with totals.

Promises: prints every seed that fails and what is wrong, then the counts; exit 1 on any failure. The same
seeds give the same cuts on every machine.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.simulation import exhaustive, fault_runs, power_cut
from tests.thin_tools import thin_checks, version_of

Result = tuple[str, Counter[str], list[str]]


def _cut(seed: int, nr_steps: int, nr_subsets: int) -> Result:
    logging.disable(logging.CRITICAL)  # what the engine says of the modes that it is driven into
    cuts = power_cut.run_history(seed, nr_steps, thin_checks(), nr_subsets=nr_subsets)
    return "power cuts", cuts.counts, cuts.failures


def _fault(seed: int, nr_steps: int, small_cache: bool) -> Result:
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as work:
        if small_cache:
            counts, failures = fault_runs.run_all_uncached(seed, nr_steps, thin_checks()[:1], Path(work))
        else:
            counts, failures = fault_runs.run_all(seed, nr_steps, thin_checks()[:1], Path(work))
    return f"faults{', tiny metadata cache' if small_cache else ''}", counts, failures


def _exhaust(longest: int, share: int, nr_shares: int) -> Result:
    done = exhaustive.run_share(longest, share, nr_shares)
    return "exhaustive", done.counts, done.failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.sweep")
    parser.add_argument("--histories", type=int, default=100)
    parser.add_argument("--steps", type=int, default=150, help="operations of a history whose power is cut")
    parser.add_argument("--subsets", type=int, default=20, help="random subsets between two flushes")
    parser.add_argument("--fault-histories", type=int, default=4)
    parser.add_argument("--fault-steps", type=int, default=40)
    parser.add_argument(
        "--longest", type=int, default=3, help="calls of the longest history that is tried exhaustively"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first history")
    parser.add_argument("--jobs", type=int, default=2)
    wanted = parser.parse_args()
    print("external checkers:", ", ".join(f"{path} {version_of(path)}" for path in thin_checks()))
    print(f"seeds {wanted.seed} to {wanted.seed + wanted.histories - 1}")
    start, nr_failures, totals = time.monotonic(), 0, dict[str, Counter[str]]()
    with ProcessPoolExecutor(wanted.jobs) as processes:
        seeds = range(wanted.seed, wanted.seed + wanted.histories)
        runs = [processes.submit(_cut, seed, wanted.steps, wanted.subsets) for seed in seeds]
        for seed in seeds[: wanted.fault_histories]:
            runs += [processes.submit(_fault, seed, wanted.fault_steps, small) for small in (False, True)]
        nr_shares = 8 * wanted.jobs
        runs += [processes.submit(_exhaust, wanted.longest, share, nr_shares) for share in range(nr_shares)]
        for run in as_completed(runs):
            what, counts, failures = run.result()
            totals.setdefault(what, Counter()).update(counts)
            nr_failures += len(failures)
            for failure in failures[:3]:
                print(f"FAILED {what}: {failure}")
    for what, counts in totals.items():
        print(f"{what}:")
        for name, count in sorted(counts.items()):
            print(f"{count:10} {name}")
    print(f"{nr_failures} failures, {time.monotonic() - start:.0f} s")
    return 1 if nr_failures else 0


if __name__ == "__main__":
    sys.exit(main())
