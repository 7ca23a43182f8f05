"""`make kills`: 50 kills, each after up to three seconds of load; as root. ARGS="--kills 200 --seed 7"."""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.blockdevs.loops import why_none
from tests.kills.campaign import Campaign
from thinfs.blockdevs import nodes


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no kill after these")
    options = parser.parse_args()
    reason = why_none() or nodes.available()
    if reason is not None:
        print(f"no block devices: {reason}", file=sys.stderr)
        return 2
    directory = Path(tempfile.mkdtemp(prefix="thinfs-kills-"))
    campaign = Campaign(directory, options.seed)
    begin = time.monotonic()
    try:
        try:
            campaign.set_up()
            while campaign.kills < options.kills and time.monotonic() - begin < options.seconds:
                print(campaign.kill(), flush=True)
        finally:
            campaign.end()
    except BaseException:
        print(f"seed {options.seed}, kill {campaign.kills}; what is left: {directory}", file=sys.stderr)
        raise
    shutil.rmtree(directory)
    print(f"{campaign.held_on} of the killed servers were let go by the start of the next one")
    print(f"{campaign.kills} kills survived, {campaign.nr_checked} blocks, files and snapshots checked, nothing lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
