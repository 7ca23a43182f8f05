"""Two trees of this project in one run: engine and front rows, the trees taking turns within each round.

Promises: each tree is measured by its own programs and its own cases, so the inside may have changed; the pools and the
I/O are the same. The result goes to .cache/bench/against. Never: compares values of different rounds.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench import engine, front, machine, metadata_images
from bench.rounds import Row, turned
from bench.subjects import CACHE, TOP, Thinfs
from bench.table import Run, markdown_table, number

THIS: Final = "this"
OTHER: Final = "other"
CASES: Final[Mapping[str, Sequence[int]]] = {"mapped": (1_000, 1_000_000), "changes": (1_000, 1_000_000)}
QUICK_CASES: Final[Mapping[str, Sequence[int]]] = {"mapped": (1_000,), "changes": (1_000,)}

PARTS: Final = ("engine", "front")

Measure = Callable[["Tree", str, int], dict[str, float]]


class NotSetUp(Exception):
    """The other tree cannot be measured; says why."""


@dataclass(frozen=True, slots=True)
class Tree:
    name: str
    top: Path

    @property
    def scripts(self) -> Path:
        return self.top / ".venv/bin"

    def check(self) -> None:
        """Raises NotSetUp for what is no set-up checkout of this project."""
        if not (self.top / "bench/engine_cases.py").is_file():
            raise NotSetUp(f"{self.top}: not a checkout of thinfs with a bench")
        if not os.access(self.scripts / "thinfs", os.X_OK):
            raise NotSetUp(f"{self.top}: not set up (make -C {self.top} setup)")

    def share_image(self, nr_mappings: int) -> None:
        """The pools that both measure are the same bytes."""
        image = metadata_images.image(nr_mappings)
        copy = self.top / ".cache/bench" / image.name
        if copy != image and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            part = copy.with_suffix(".part")
            shutil.copyfile(image, part)
            os.rename(part, copy)


def measure(tree: Tree, case: str, size: int) -> dict[str, float]:
    return engine.measure(case, size, tree.scripts / "python", tree.top)


def engine_rows(
    trees: Sequence[Tree],
    cases: Mapping[str, Sequence[int]],
    rounds: int,
    say: Callable[[str], None],
    measure: Measure = measure,
) -> list[Row]:
    """One row for each case, size and metric; its subjects are the trees."""
    rows: dict[tuple[str, int, str], Row] = {}
    for round_number in range(rounds):
        for case, sizes in cases.items():
            for size in sizes:
                say(f"engine: {engine.TITLES[case]}, {size:,}, round {round_number + 1} of {rounds}")
                for tree in turned(trees, round_number):
                    for metric, value in measure(tree, case, size).items():
                        name, _, unit = metric.rpartition(", ")
                        section = f"engine: {engine.TITLES[case]}"
                        row = rows.setdefault((case, size, metric), Row(section, f"{name} ({size:,})", unit, False))
                        row.values.setdefault(tree.name, []).append(value)
    return list(rows.values())


def front_rows(trees: Sequence[Tree], plan: front.Plan, say: Callable[[str], None]) -> tuple[list[Row], list[str]]:
    return front.run(plan, say, {tree.name: partial(Thinfs, name=tree.name, scripts=tree.scripts) for tree in trees})


def render(run: Run) -> str:
    """Medians of both, and how many times faster this tree is: the median of the rounds' own ratios."""
    parts = []
    for section in dict.fromkeys(row.section for row in run.rows):
        rows = [row for row in run.rows if row.section == section]
        lines = [
            [
                f"{row.name}, {row.unit}",
                number(row.median(THIS)),
                number(row.median(OTHER)),
                str(row.ratio(THIS, OTHER) or "-"),
            ]
            for row in rows
        ]
        parts += [f"**{section}**", markdown_table(["", THIS, OTHER, "this is faster by"], lines)]
    notes = [f"{key}: {run.machine[key]}" for key in (THIS, OTHER, "date", "load", "rounds") if key in run.machine]
    return "\n\n".join([*parts, "\n".join(f"- {note}" for note in (*run.notes, *notes))])


def run(checkout: str, parts: Sequence[str], rounds: int, say: Callable[[str], None], quick: bool = False) -> str:
    """The table; also written, with its JSON, to .cache/bench/against."""
    trees = [Tree(THIS, TOP), Tree(OTHER, Path(checkout).resolve())]
    for tree in trees:
        tree.check()
    described = machine.describe()
    described |= {"rounds": str(rounds), **{tree.name: machine.commit_of(tree.top) for tree in trees}}
    rows, notes = list[Row](), list[str]()
    if "engine" in parts:
        cases = QUICK_CASES if quick else CASES
        for size in sorted({size for sizes in cases.values() for size in sizes}):
            for tree in trees:
                tree.share_image(size)
        rows += engine_rows(trees, cases, rounds, say)
    if "front" in parts:
        found, notes = front_rows(trees, front.Plan(rounds, 0.5, ("tmpfs",), quick=True), say)
        rows += found
    result = Run(described, rows, notes)
    directory = CACHE / "against"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "run.json").write_text(json.dumps(result.as_json(), indent=1) + "\n")
    table = render(result)
    (directory / "table.md").write_text(table + "\n")
    return table
