"""Text that came from outside, made fit for a log or a terminal: one line, no control sequence, not endless."""

import re
from typing import Final

# C0, DEL, C1, line and paragraph separators, what turns the direction of writing, and lone surrogates
_UNFIT: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str, longest: int | None = None) -> str:
    r"""Each such character as Python writes it (\n, \x1b); the middle of a text that is too long is left out."""
    if longest is not None and len(text) > longest:
        text = f"{text[: longest // 2]} ... {len(text) - longest} characters ... {text[-(longest - longest // 2) :]}"
    return _UNFIT.sub(lambda character: character[0].encode("unicode_escape").decode("ascii"), text)
