"""Transcripts of dmsetup, as in tests/golden: parsed, and compared with what our dmsetup prints.

`$` a command, then its output, then `# rc=N`; `!` lines are steps beside the commands; `<usage>` stands for
a usage text. The reason lines that are ours (`thinfs: ...`) are left out of the comparison.
"""

import re
import shlex
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from thinfs.dm.backend import Backend
from thinfs.dmsetup.commands import run_dmsetup, usage
from thinfs.errors import OtherError

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "dmsetup.transcript"


@dataclass(frozen=True, slots=True)
class Command:
    line_number: int
    argv: tuple[str, ...]
    output: str
    status: int


@dataclass(frozen=True, slots=True)
class Step:
    line_number: int
    words: tuple[str, ...]


def parse_transcript(text: str) -> Iterator[Command | Step]:
    argv: tuple[str, ...] = ()
    output: list[str] = []
    start = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("! "):
            yield Step(number, tuple(line[2:].split()))
        elif line.startswith("$ "):
            argv, output, start = tuple(shlex.split(line[2:])[1:]), [], number
        elif line.startswith("# rc="):
            yield Command(start, argv, "".join(row + "\n" for row in output), int(line[5:]))
        elif not line.startswith("# "):
            output.append(line)


class Terminal:
    """A Console: everything printed, in order; files from a dictionary, None being standard input."""

    def __init__(self, files: dict[str | None, str] | None = None) -> None:
        self.text = ""
        self.errors = ""
        self._files = files or {}

    def out(self, text: str) -> None:
        self.text += text

    def err(self, text: str) -> None:
        self.text += text
        self.errors += text

    async def flush(self) -> None:
        return

    async def read(self, path: str | None) -> str:
        if path not in self._files:
            raise OtherError(2, f"{path}: No such file or directory")
        return self._files[path]

    def without_reasons(self) -> str:
        text = self.text.replace(usage(), "<usage>\n")
        return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("thinfs: "))


async def dmsetup(
    backend: Backend, *argv: str, files: dict[str | None, str] | None = None, cwd: str = "/"
) -> tuple[int, Terminal]:
    terminal = Terminal(files)
    status = await run_dmsetup(argv, backend=backend, console=terminal, mount_dir="/run/thinfs", cwd=cwd)
    return status, terminal


async def replay(
    backend: Backend,
    text: str,
    step: Callable[[Sequence[str]], Awaitable[None]],
    mask: Callable[[str], str] = lambda text: text,
) -> None:
    """Every command answers as in the transcript; `mask` takes out of both what cannot be the same."""
    for entry in parse_transcript(text):
        if isinstance(entry, Step):
            await step(entry.words)
            continue
        status, terminal = await dmsetup(backend, *entry.argv)
        where = f"line {entry.line_number}: dmsetup {' '.join(entry.argv)}"
        assert (where, mask(terminal.without_reasons())) == (where, mask(entry.output))
        assert (where, status) == (where, entry.status)


def mask_held_root(text: str) -> str:
    """Where the held root lies depends on how often was committed before, on which the transcript is silent."""
    return re.sub(r"(thin-pool \d+ \S+ \S+) \d+ ", r"\1 HELD ", text)


def mask_counts(text: str) -> str:
    """Of a backend that invents them: the blocks a pool has used, and the held root."""
    return re.sub(r"(thin-pool \d+) \d+/(\d+) \d+/(\d+)", r"\1 N/\2 N/\3", mask_held_root(text))
