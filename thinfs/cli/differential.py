"""`thinfs differential`: random and shaped histories on the engine and a kernel, or a backend of the user's own.

Promises: exit status 0 without a finding, 1 with, 2 for bad words. The campaigns are the package
thinfs_suites.differential, in a checkout tests/differential; they need what `thinfs conformance` needs.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Final

_NEEDED: Final = ("pytest", "trio")


def main(words: Sequence[str]) -> int:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"thinfs differential: {', '.join(missing)} not installed: pip install 'thinfs[test]'", file=sys.stderr)
        return 2
    sys.path.insert(0, os.getcwd())  # where a backend of the user's own lies
    package = suites()
    if package is None:
        print("thinfs differential: the campaigns are not installed: no package thinfs_suites", file=sys.stderr)
        return 2
    status: int = importlib.import_module(f"{package}.differential.sweep").main(words)
    return status


def suites() -> str | None:
    """The package of conformance and differential: an installed one, or this checkout's tests."""
    if importlib.util.find_spec("thinfs_suites") is not None:
        return "thinfs_suites"
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    if not os.path.exists(os.path.join(root, "tests", "differential", "sweep.py")):
        return None
    sys.path.insert(0, root)
    return "tests"
