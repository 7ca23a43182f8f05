"""`make soak`: 100 volumes, 16 writers, ten minutes. ARGS="--seconds 3600 --volumes 400"."""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from tests.soak.soak import MIB, Soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--volumes", type=int, default=100)
    parser.add_argument("--writers", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="thinfs-soak-"))
    soak = Soak(directory, options.volumes, options.writers, options.seed)
    with soak.running():
        before, peak, after = soak.run(options.seconds)
    print(", ".join(f"{number} {name}" for name, number in soak.done.items()))
    print(f"{'':10}{'resident':>12}{'descriptors':>13}{'threads':>9}{'loop devices':>14}")
    for name, one in (("before", before), ("peak", peak), ("after", after)):
        print(f"{name:10}{one.resident_bytes // MIB:>8} MiB{one.descriptors:>13}{one.threads:>9}{one.loop_devices:>14}")
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
