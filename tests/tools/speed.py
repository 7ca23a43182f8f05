"""Time and memory of the offline tools beside thin-provisioning-tools 1.1.0, at one and ten million mappings.

Promises: each pair of commands runs turn by turn, several times; the figure is the processor time of the whole process
(the machine may be busy with others) and the largest resident size; minimum of the turns. Every mapping stands alone
("fragmented"), or they come in runs. `python -m tests.tools.speed --mappings 1000000 10000000`.
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.thin_tools import V1_1_0, judge
from tests.tools.against_thin_tools import blank

_NR_THINS = 4
_TURNS = 3


def xml(nr_mappings: int, *, fragmented: bool) -> Iterator[str]:
    chance = random.Random(1)
    per_thin = nr_mappings // _NR_THINS
    places = list(range(nr_mappings))
    if fragmented:
        chance.shuffle(places)
    nr_data_blocks = nr_mappings + nr_mappings // 8
    yield f'<superblock uuid="" time="3" transaction="5" data_block_size="128" nr_data_blocks="{nr_data_blocks}">\n'
    for dev_id in range(_NR_THINS):
        yield f'<device dev_id="{dev_id}" mapped_blocks="{per_thin}" transaction="0" creation_time="0" snap_time="0">\n'
        done = thin_block = 0
        while done < per_thin:
            length = 1 if fragmented else min(chance.choice((1, 1, 2, 3, 8, 40)), per_thin - done)
            data = places[dev_id * per_thin + done]
            yield (
                f'<range_mapping origin_begin="{thin_block}" data_begin="{data}" length="{length}" time="0"/>\n'
                if length > 1
                else f'<single_mapping origin_block="{thin_block}" data_block="{data}" time="0"/>\n'
            )
            done, thin_block = done + length, thin_block + length + 1
        yield "</device>\n"
    yield "</superblock>\n"


def cost(command: Sequence[str | Path]) -> tuple[float, int]:
    """(processor seconds, KiB) of a process of its own."""
    child = os.fork()
    if not child:
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        text = f"{usage.ru_utime + usage.ru_stime} {usage.ru_maxrss} {done.returncode}"
        Path(os.environ["THINFS_SPEED"]).write_text(text)
        os._exit(0)
    os.waitpid(child, 0)
    seconds, size, status = Path(os.environ["THINFS_SPEED"]).read_text().split()
    if status != "0":
        raise SystemExit(f"{command}: exit status {status}")
    return float(seconds), int(size)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mappings", type=int, nargs="*", default=[1_000_000, 10_000_000])
    options = parser.parse_args()
    print("| mappings | tool | thinfs: CPU s, MiB | 1.1.0: CPU s, MiB | time, ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="thinfs-speed-") as name:
        directory = Path(name)
        os.environ["THINFS_SPEED"] = str(directory / "usage")
        for nr in options.mappings:
            for fragmented in (True, False):
                text = directory / "xml"
                with text.open("w") as file:
                    file.writelines(xml(nr, fragmented=fragmented))
                label = f"{nr:,} {'fragmented' if fragmented else 'in runs'}"
                for row in rows(directory, text, nr * 64 + (16 << 20)):
                    print(f"| {label} | {row}", flush=True)
    return 0


def rows(directory: Path, text: Path, size: int) -> Iterator[str]:
    pool, target = blank(directory / "pool", size), blank(directory / "target", size)
    thinfs = (sys.executable, "-m", "thinfs.cli.main")
    fields = ("--no-headers", "-o", "DEV,EXCLUSIVE_BLOCKS")
    commands: dict[str, tuple[tuple[str | Path, ...], tuple[str | Path, ...] | None]] = {
        "restore": (
            ("restore", "-i", text, "-o", pool),
            (judge("thin_restore", V1_1_0), "-i", text, "-o", target),
        ),
        "check": (("check", "-q", pool), (judge("thin_check", V1_1_0), "-q", pool)),
        "dump": (
            ("dump", "-o", directory / "out", pool),
            (judge("thin_dump", V1_1_0), "-o", directory / "out", pool),
        ),
        "ls": (("ls", *fields, pool), (judge("thin_ls", V1_1_0), *fields, pool)),
        "delta": (
            ("delta", "--thin1", "0", "--thin2", "1", pool),
            (judge("thin_delta", V1_1_0), "--thin1", "0", "--thin2", "1", pool),
        ),
        "repair": (
            ("repair", "-q", "-i", pool, "-o", target),
            (judge("thin_repair", V1_1_0), "-i", pool, "-o", target),
        ),
    }
    for tool, (ours, theirs) in commands.items():
        turns = [(cost((*thinfs, *ours)), cost(theirs) if theirs else (0.0, 0)) for _ in range(_TURNS)]
        mine, other = (min(turn[i][0] for turn in turns) for i in (0, 1))
        my_size, other_size = (max(turn[i][1] for turn in turns) / 1024 for i in (0, 1))
        yield f"{tool} | {mine:.2f}, {my_size:.0f} | {other:.2f}, {other_size:.0f} | {mine / max(other, 0.01):.2f} |"


if __name__ == "__main__":
    sys.exit(main())
