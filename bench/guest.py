"""dm-thin of a 6.1 kernel in User-Mode Linux: the shape of its costs, not its speed (system calls cost tenfold there).

Promises: the same fio jobs by the same fio, on its thin volume and on its plain disk; absent kernel, absent rows.
"""

from collections.abc import Callable, Sequence
from typing import Final

from bench.fio import MIB, measure
from bench.front import COPY_ON_WRITE, RANDOM, SEQUENTIAL, VOLUME_BYTES
from bench.rounds import Row
from kernel_backend.runner import Guest
from kernel_backend.uml import KERNEL_6_1

THIN: Final = "6.1 dm-thin"
PLAIN: Final = "6.1 plain disk"
_SECTION: Final = "dm-thin of a 6.1 guest, for its shape"


def run(rounds: int, seconds: float, say: Callable[[str], None]) -> tuple[list[Row], list[str]]:
    if KERNEL_6_1.missing is not None:
        return [], [f"no rows of dm-thin itself: {KERNEL_6_1.missing}"]
    rows: dict[str, Row] = {}
    for number in range(rounds):
        say(f"dm-thin in a 6.1 guest, round {number + 1} of {rounds}")
        with Guest(KERNEL_6_1, images=(64 * MIB, 4 * VOLUME_BYTES, VOLUME_BYTES), call_timeout=120) as guest:
            _round(guest, rows, seconds)
    return list(rows.values()), []


def _round(guest: Guest, rows: dict[str, Row], seconds: float) -> None:
    def in_guest(command: Sequence[str]) -> str:
        done = guest.shell(list(command), timeout=100)
        if done.returncode:
            raise RuntimeError(f"fio in the guest: {(done.stderr or done.stdout)[-1000:]}")
        return str(done.stdout)

    metadata, data, plain = guest.images
    guest.create("pool", f"0 {4 * VOLUME_BYTES // 512} thin-pool {metadata.device} {data.device} 128 0")
    guest.message("pool", "create_thin 0")
    guest.create("volume", f"0 {VOLUME_BYTES // 512} thin /dev/mapper/pool 0")
    volume = guest.node("volume")
    for job in (*SEQUENTIAL, *RANDOM, *COPY_ON_WRITE):
        row = rows.setdefault(job.name, Row(_SECTION, job.name, job.unit, True))
        if job in COPY_ON_WRITE:
            guest.suspend("volume")
            guest.message("pool", f"create_snap {1 + COPY_ON_WRITE.index(job)} 0")
            guest.resume("volume")
        else:
            row.values.setdefault(PLAIN, []).append(measure(job, plain.node, VOLUME_BYTES, seconds, in_guest))
        row.values.setdefault(THIN, []).append(measure(job, volume, VOLUME_BYTES, seconds, in_guest))
