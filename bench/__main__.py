"""python -m bench run [--quick] [--against CHECKOUT] | render | profile: `make bench`, `bench-quick`, `profile`.

Promises: a full run writes bench/results (JSON, table, plots) and the README's five rows; a quick one, a part and a
comparison of two trees write below .cache only. Never: overwrites the last full run before the new one is complete.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from bench import against, dropin, engine, front, guest, machine, table
from bench.rounds import Row
from bench.subjects import CACHE, HERE, TOP

RESULTS = HERE / "results"
PARTS = ("front", "guest", "engine", "dropin")


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def measure(parts: list[str], *, quick: bool) -> table.Run:
    described = machine.describe()
    rows, notes = list[Row](), list[str]()
    if "front" in parts:
        plan = front.Plan(1, 0.4, ("tmpfs",), quick=True) if quick else front.Plan(3, 0.5)
        found, said = front.run(plan, _say)
        rows, notes = rows + found, notes + said
    if "guest" in parts and not quick:
        found, said = guest.run(3, 0.5, _say)
        rows, notes = rows + found, notes + said
    if "engine" in parts:
        rows += engine.run(engine.QUICK, 1, _say) if quick else engine.run(engine.FULL, 3, _say)
    if "dropin" in parts:
        rows += dropin.run(1 if quick else 3, _say)
    return table.Run(described, rows, notes)


def publish(run: table.Run, directory: Path) -> None:
    from bench import plots  # after the measurements: matplotlib is 30 MB that every child's memory would show

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "run.json").write_text(json.dumps(run.as_json(), indent=1) + "\n")
    text = table.render(run)
    pictures = plots.draw(run, directory)
    links = "\n".join(f"![{path.stem}]({path.name})" for path in pictures)
    (directory / "table.md").write_text(f"{text}\n\n{links}\n")
    print(text)
    if directory == RESULTS:
        table.update(TOP / "README.md", table.summary(run))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="measure, then write results")
    running.add_argument("--quick", action="store_true", help="under two minutes: one round, fewer rows and sizes")
    running.add_argument("--only", action="append", choices=PARTS, help="one part; the results go below .cache")
    running.add_argument("--against", metavar="CHECKOUT", help="engine and front of this tree and another, in turns")
    running.add_argument("--rounds", type=int, default=3, help="of --against (3)")
    commands.add_parser("render", help="table and plots of the last full run again, from its JSON")
    commands.add_parser("profile", help="where the time goes, per layer")
    options = parser.parse_args()
    if options.command == "profile":
        from bench import layers

        layers.write(HERE / "profile.txt")
    elif options.command == "render":
        publish(table.Run.from_json(json.loads((RESULTS / "run.json").read_text())), RESULTS)
    elif options.against:
        parts = options.only or list(against.PARTS)
        if not set(parts) <= set(against.PARTS):
            parser.error(f"--against compares {' and '.join(against.PARTS)} only")
        if options.rounds < 1:
            parser.error(f"--rounds {options.rounds}: at least 1")
        try:
            print(against.run(options.against, parts, options.rounds, _say, quick=options.quick))
        except against.NotSetUp as error:
            parser.error(str(error))
    else:
        run = measure(options.only or list(PARTS), quick=options.quick)
        publish(run, CACHE / "quick" if options.quick or options.only else RESULTS)


if __name__ == "__main__":
    main()
