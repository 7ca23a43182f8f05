"""The table text of a dmsetup command: comments out, the form of its lines checked, paths made absolute.

A relative path means one in the caller's directory, which the server is not in. (The kernel takes absolute
paths only; files as backing devices are ours, and so is this.)
"""

import os
from collections.abc import Mapping, Sequence

import trio

from thinfs.dm.table import quote_word, split_words
from thinfs.errors import InvalidArgument

# Where in a line (start, length, target, ...) a device may stand.
_DEVICE_WORDS: Mapping[str, Sequence[int]] = {
    "thin-pool": (3, 4),
    "thin": (3, 5),
    "linear": (3,),
    "thin-rescue": (3, 4),
}


def table_lines(text: str, source: str) -> list[str]:
    """The target lines; raises InvalidArgument naming the line that does not start with two numbers and a word."""
    lines = []
    for number, row in enumerate(text.split("\n"), 1):
        line = row.strip()
        if not line or line.startswith("#"):
            continue
        words = line.split()
        if len(words) < 3 or not words[0].isdecimal() or not words[1].isdecimal():
            raise InvalidArgument(f"Invalid format on line {number} of table from {source}: {line}")
        lines.append(line)
    if not lines:
        raise InvalidArgument(f"No target in the table from {source}")
    return lines


async def with_absolute_paths(lines: Sequence[str], cwd: str) -> str:
    # In a thread: the directory may lie in our own mount, and then the trio thread answers the question.
    return await trio.to_thread.run_sync(lambda: "\n".join(_absolute(line, cwd) for line in lines))


def _absolute(line: str, cwd: str) -> str:
    words = split_words(line)
    changed = False
    for position in _DEVICE_WORDS.get(words[2], ()):
        word = words[position] if position < len(words) else "/"
        path = os.path.normpath(os.path.join(cwd, word))
        if not word.startswith("/") and os.path.isfile(path):
            words[position], changed = path, True
    return " ".join(map(quote_word, words)) if changed else line
