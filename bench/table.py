"""The table of a run, for the terminal and bench/results, five rows of it for the README: medians, spread, ratios.

Promises: a ratio above 1 says thinfs is faster, and carries a "?" where the rounds disagree about that; every
number is of one run, whose date and machine stand below. Never: leaves out a row that looks bad.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.rounds import Row

BEGIN: Final = "<!-- bench: begin -->"
END: Final = "<!-- bench: end -->"
PEERS: Final = ("qemu", "pyfuse3", "libfuse", "plain")
SUMMARY_PEERS: Final = ("qemu", "libfuse")
SUMMARY_SECTION: Final = "front to back, tmpfs"
SUMMARY: Final = (
    "4K random read",
    "4K random write, depth 16",
    "1M sequential first write",
    "4K copy-on-write",
    "4K random write + fsync each",
)

FLUSHES: Final = (
    "Flush semantics are the same on both sides: an fsync returns when data and mappings are on stable storage "
    "(thinfs: data flush, metadata commit with its two flushes; qemu: `cache=writeback`, so bdrv_flush of "
    "clusters, L2 tables and refcounts; pass-throughs and plain file: fdatasync). Nobody uses FUSE's writeback "
    "cache, every write job ends in an fsync inside its measured time, and the pool zeroes new blocks "
    "(dm-thin's default, not `skip_block_zeroing`)."
)
MEANING: Final = (
    "thinfs in absolute numbers, ± half the range of its rounds, then how many times faster than each peer it "
    "is: 2.00 is twice as fast, 0.50 half as fast; the median of the rounds' own ratios. `?`: the rounds "
    "disagree about who is faster. qemu: its storage daemon's FUSE export of a qcow2 with 64 KiB clusters; "
    "pyfuse3: a pass-through on the same binding (its ceiling); libfuse: one in C, one thread (FUSE's "
    "ceiling); plain: the file without FUSE. On disk, direct I/O on the plain file goes to the disk; whoever "
    "serves a file serves it from the machine's page cache."
)


@dataclass(frozen=True, slots=True)
class Run:
    machine: dict[str, str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"machine": self.machine, "notes": self.notes, "rows": [row.as_json() for row in self.rows]}

    @classmethod
    def from_json(cls, run: dict[str, Any]) -> "Run":
        return cls(run["machine"], [Row.from_json(row) for row in run["rows"]], run["notes"])


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _spread(row: Row, subject: str) -> str:
    spread = row.spread(subject)
    return "" if spread is None else f" ±{spread * 50:.0f}%"


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rendered = [f"| {' | '.join(line)} |" for line in (header, *lines)]
    return "\n".join([rendered[0], "|" + "---|" * len(header), *rendered[1:]])


def beside_peers(rows: Sequence[Row], subject: str, peers: Sequence[str]) -> str:
    lines = []
    for row in rows:
        value = f"{number(row.median(subject))} {row.unit}{_spread(row, subject)}"
        lines.append([row.name, value, *(str(row.ratio(subject, peer) or "-") for peer in peers)])
    return markdown_table(["", subject, *(f"/ {peer}" for peer in peers)], lines)


def by_size(rows: Sequence[Row]) -> str:
    sizes = sorted({size for row in rows for size in row.values}, key=int)
    lines = []
    for row in rows:
        values = [number(row.median(size)) + _spread(row, size) for size in sizes]
        first, last = row.median(sizes[0]), row.median(sizes[-1])
        growth = f"{last / first:.2f}x" if first and last else "-"
        lines.append([f"{row.name}, {row.unit}", *values, growth])
    return markdown_table(["", *(f"{int(size):,}" for size in sizes), "growth"], lines)


def sections(run: Run) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in run.rows:
        found.setdefault(row.section, []).append(row)
    return found


def render(run: Run) -> str:
    parts = []
    for section, rows in sections(run).items():
        parts.append(f"**{section[0].upper()}{section[1:]}**")
        if section.startswith("engine"):
            parts.append(by_size(rows))
        elif section.startswith("dm-thin"):
            parts.append(beside_peers(rows, "6.1 dm-thin", ("6.1 plain disk",)))
        elif section == "drop-in":
            parts.append(beside_peers(rows, "thinfs", ("python3 -S -c pass", "dmsetup")))
        else:
            parts.append(beside_peers(rows, "thinfs", PEERS))
    machine = ", ".join(f"{key} {value}" for key, value in run.machine.items())
    notes = [MEANING, FLUSHES, *run.notes, f"Measured: {machine}."]
    return "\n\n".join([*parts, "\n".join(f"- {' '.join(note.split())}" for note in notes)])


def summary(run: Run) -> str:
    """Five rows for the README."""
    rows = [row for row in run.rows if row.section == SUMMARY_SECTION and row.name in SUMMARY]
    by_name = beside_peers(rows, "thinfs", SUMMARY_PEERS)
    when = ", ".join(f"{key} {run.machine[key]}" for key in ("date", "cpu", "load", "commit") if key in run.machine)
    return f"{by_name}\n\n{SUMMARY_SECTION[0].upper()}{SUMMARY_SECTION[1:]}; {when}."


def put_between_markers(text: str, table: str) -> str:
    """A text whose markers hold the table; one without markers stays as it is."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table}\n{END}{tail}" if begin and end else text


def update(path: Path, table: str) -> None:
    text = path.read_text()
    new = put_between_markers(text, table)
    if new != text:
        path.write_text(new)
