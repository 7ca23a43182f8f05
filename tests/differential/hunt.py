"""Histories one after the other, in a process of their own: `python -m` this module with a Task as JSON.

Promises: a line of JSON before each history and one after it, with what differed, shrunk; whatever happens to this
process, its last line says in which history. tests/differential/campaign starts it and watches.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import count, islice, product
from typing import Any, Final

from kernel_backend.uml import KERNELS

from . import history
from .foreign import ForeignSide
from .pair import KernelSide, Result, Side, compare, shrunk, userspace_side
from .variants import VARIANTS

PLANTED: Final = "THINFS_DIFFERENTIAL_PLANT"  # a module:function to call first, for tests of the campaign


@dataclass(frozen=True, slots=True)
class Task:
    """Idempotent: the same task does the same histories, as far as its time reaches."""

    kernels: tuple[str, ...]  # none: the engine against the model and thin_check alone
    variants: tuple[str, ...]
    first_seed: int
    nr_seeds: int
    seconds: float
    done: int = 0  # histories of it that an earlier process came to


@dataclass(slots=True)
class Finding:
    """Enough to see it again: `--once --variant V --seed N --kernel K`."""

    variant: str
    seed: int
    kernel: str
    differences: list[str]
    operations: list[Any] = field(default_factory=list)
    script: str = ""


def cases(task: Task) -> Iterator[tuple[int, str, str]]:
    """(seed, variant, kernel) in the order in which they come."""
    seeds = range(task.first_seed, task.first_seed + task.nr_seeds)
    return islice(product(seeds, task.variants, task.kernels or ("none",)), task.done, None)


def found(result: Result, small: Result, seed: int, kernel: str) -> Finding:
    script = history.as_commands(small.operations)
    differences = [*result.differences[:5], f"shrunk to {len(small.operations)} operations:", *small.differences[:5]]
    return Finding(result.variant.name, seed, kernel, differences, list(small.operations), script)


def _side(name: str) -> Side:
    return ForeignSide(name) if ":" in name else KernelSide.boot(KERNELS[name])


def hunt(task: Task, say: Callable[[dict[str, Any]], None]) -> None:
    begin, sides = time.monotonic(), dict[str, Side]()
    try:
        with userspace_side() as ours:
            for number, (seed, name, kernel) in zip(count(task.done), cases(task), strict=False):
                if time.monotonic() - begin >= task.seconds:
                    return
                say({"begun": number, "seed": seed, "variant": name, "kernel": kernel})
                if kernel != "none" and kernel not in sides:
                    sides[kernel] = _side(kernel)
                theirs = sides.get(kernel)
                variant = VARIANTS[name]
                result = compare(variant, history.make(variant, seed, kernel), ours, theirs)
                finding = None
                if result.differences:
                    say({"differs": number})
                    finding = asdict(found(result, shrunk(result, ours, theirs), seed, kernel))
                say({"done": number, "operations": len(result.operations), "states": result.states, "finding": finding})
    finally:
        for side in sides.values():
            side.close()


def main() -> int:
    logging.disable(logging.CRITICAL)
    words = json.loads(sys.argv[1])
    task = Task(**{**words, "kernels": tuple(words["kernels"]), "variants": tuple(words["variants"])})
    if planted := os.environ.get(PLANTED):
        from importlib import import_module

        module, name = planted.split(":")
        getattr(import_module(module), name)()

    def say(event: dict[str, Any]) -> None:
        print(json.dumps(event), flush=True)

    hunt(task, say)
    say({"ended": True})
    return 0


if __name__ == "__main__":
    sys.exit(main())
