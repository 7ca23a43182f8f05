"""`make differential SECONDS=1800`: histories of all variants on the kernels in turn, until the time is up.

Prints a line now and then, every difference with its shrunk script, and the totals; exit status 1 if any differed.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from kernel_backend.runner import Guest
from kernel_backend.uml import KERNELS

from . import history
from .pair import IMAGES, KernelSide, compare, report, userspace_side
from .variants import VARIANTS


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential.sweep", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="the first (default: the time); with --once the only")
    parser.add_argument("--once", action="store_true", help="one seed, to look at a report again")
    parser.add_argument("--variant", action="append", choices=sorted(VARIANTS))
    parser.add_argument("--kernel", action="append", choices=sorted(KERNELS))
    options = parser.parse_args(words)
    variants = [VARIANTS[name] for name in options.variant or VARIANTS]
    first = int(time.time()) if options.seed is None else options.seed
    nr_sequences = nr_operations = nr_differing = 0
    begin = said = time.monotonic()
    guests = [Guest(KERNELS[name], images=IMAGES, memory_mb=256) for name in options.kernel or sorted(KERNELS)]
    try:
        with userspace_side() as ours:
            seed = first
            while time.monotonic() - begin < options.seconds:
                for variant in variants:
                    for guest in guests:
                        theirs, operations = KernelSide(guest), history.make(variant, seed, guest.kernel.name)
                        result = compare(variant, operations, ours, theirs)
                        nr_sequences, nr_operations = nr_sequences + 1, nr_operations + len(operations)
                        if result.differences:
                            nr_differing += 1
                            print(report(result, seed, ours, theirs), flush=True)
                if time.monotonic() - said > 60:
                    said = time.monotonic()
                    print(f"{said - begin:.0f} s: {nr_sequences} sequences, {nr_differing} differ", flush=True)
                seed += 1
                if options.once:
                    break
    finally:
        for guest in guests:
            guest.close()
    minutes = (time.monotonic() - begin) / 60
    print(
        f"seeds {first} to {seed - 1}: {nr_sequences} sequences, {nr_operations} operations, {nr_differing} sequences "
        f"differ, {minutes:.1f} minutes, {nr_operations / minutes:.0f} operations a minute"
    )
    return 1 if nr_differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
