"""`make tools-campaign`: 50 random pools and ten damaged variants of each, against both thin-provisioning-tools.

Promises: one line for each thing that is wrong, at once; the counts of all that was compared at the end, as Markdown if
asked for; exit status 1 if anything was wrong. A seed gives the same pool and damage each time.
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.tools.against_thin_tools import each_damage, sound
from tests.tools.pools import random_pool


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pools", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the first")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    nr_wrong = 0
    with tempfile.TemporaryDirectory(prefix="thinfs-tools-") as name:
        directory = Path(name)
        for seed in range(options.seed, options.seed + options.pools):
            pool = random_pool(directory / f"seed {seed}", seed, metadata_snapshot=seed % 5 == 4)
            for found in (sound(pool, directory, seed), *each_damage(pool, directory, seed)):
                counts += found.counts
                nr_wrong += len(found.wrong)
                for line in found.wrong:
                    print(line, flush=True)
            pool.unlink()
    for what, nr in sorted(counts.items()):
        print(f"{nr:6}  {what}")
    print(f"{options.pools} pools from seed {options.seed}: {nr_wrong} wrong")
    return 1 if nr_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
