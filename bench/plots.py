"""Plots of cost against size, as PNG, by matplotlib: the engine's sections, and thinfs beside its peers.

Promises: medians with a bar from the smallest to the largest round; both axes logarithmic where sizes are.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from bench.rounds import Row
from bench.table import PEERS, Run, sections


def draw(run: Run, directory: Path) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for section, rows in sections(run).items():
        if section.startswith("engine: "):
            title = section.removeprefix("engine: ")
            path = directory / f"engine-{title.partition(',')[0].replace(' ', '-')}.png"
            _against_size(title, rows, path)
            paths.append(path)
        elif section.startswith("front to back"):
            path = directory / f"{section.replace(',', '').replace(' ', '-')}.png"
            _beside_peers(section, rows, path)
            paths.append(path)
    return paths


def _against_size(title: str, rows: Sequence[Row], path: Path) -> None:
    times = [row for row in rows if row.unit in ("us", "ms")]
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for row in times:
        factor = 1000 if row.unit == "ms" else 1
        sizes = sorted(row.values, key=int)
        middles = [factor * (row.median(size) or 0) for size in sizes]
        below = [middle - factor * min(row.values[size]) for size, middle in zip(sizes, middles, strict=True)]
        above = [factor * max(row.values[size]) - middle for size, middle in zip(sizes, middles, strict=True)]
        numbers = [int(size) for size in sizes]
        axes.errorbar(numbers, middles, yerr=[below, above], marker="o", capsize=3, label=row.name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(title.rpartition(", by ")[2])
    axes.set_ylabel("microseconds")
    axes.set_title(title)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _beside_peers(title: str, rows: Sequence[Row], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(9, 0.4 * len(rows) + 1.5))
    for shift, peer in enumerate(PEERS):
        found = [(place, row.ratio("thinfs", peer)) for place, row in enumerate(rows)]
        shown = [(place, ratio) for place, ratio in found if ratio is not None]
        axes.plot(
            [ratio.value for _, ratio in shown],
            [place + 0.15 * (shift - 1.5) for place, _ in shown],
            "o",
            label=f"/ {peer}",
        )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as the peer (right of 1: thinfs is faster)")
    axes.set_title(title)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
