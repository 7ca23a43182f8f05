"""The engine's modules compiled by mypyc (setup.py): the same sources, about twice as fast at what changes metadata.

Promises: compiled modules run only if every source that went into them is, byte for byte, the one beside them; else the
sources run, and one line on standard error says which was edited. THINFS_PURE=1: the sources run, without a word: for
debugging, coverage, and tests that patch or plant something, which a compiled module would not notice.
"""

import hashlib
import json
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from typing import Final

SOURCES: Final = ("bio.py", "steps.py", "persistent/*.py", "pool/*.py")  # in thinfs/; __init__ stays as it is
INTERPRETED: Final = ("persistent/candidates.py",)  # mypyc 2.4 fails on it, and only repairs need it
GROUP: Final = "thinfs__mypyc"  # what all compiled modules share
DIRECTORY: Final = "_compiled"
MANIFEST: Final = "manifest.json"  # {"suffix": of the files, "sources": {path in thinfs/: sha256}}

_TOP: Final = os.path.dirname(os.path.abspath(__file__))
_in_use: bool | None = None  # not asked yet


def digest_of(path: str) -> str:
    with open(path, "rb") as source:
        return hashlib.sha256(source.read()).hexdigest()


def in_use() -> bool:
    """Whether the engine's modules of this process are, or will be, the compiled ones."""
    global _in_use
    if _in_use is None:
        _in_use = os.environ.get("THINFS_PURE", "0") in ("", "0") and _is_usable()
    return _in_use


def _is_usable() -> bool:
    try:
        with open(os.path.join(_TOP, DIRECTORY, MANIFEST)) as file:
            manifest = json.load(file)
    except FileNotFoundError:
        return False
    if manifest["suffix"] != EXTENSION_SUFFIXES[0]:
        return False
    for source, digest in manifest["sources"].items():
        path = os.path.join(_TOP, source)
        if not os.path.exists(path) or digest_of(path) != digest:
            print(
                f"thinfs: the compiled engine is not that of {path}: it does not run (see scripts/setup engine)",
                file=sys.stderr,
            )
            return False
        if not os.path.exists(_file_of(f"thinfs.{source[:-3].replace('/', '.')}")):
            return False
    return os.path.exists(_file_of(GROUP))


def _file_of(name: str) -> str:
    return os.path.join(_TOP, DIRECTORY, *name.removeprefix("thinfs.").split(".")) + EXTENSION_SUFFIXES[0]


def find(name: str) -> ModuleSpec | None:
    """Where the compiled module of that name is, if it runs."""
    path = _file_of(name)
    if not in_use() or not os.path.exists(path):
        return None
    return spec_from_file_location(name, path, loader=ExtensionFileLoader(name, path))
