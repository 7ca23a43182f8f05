"""Bugs planted in the engine: a piece of its source replaced, and the functions it changes given their new code.

Promises: works on the interpreted engine and refuses a compiled one; the piece must be there exactly once in the rooms
named; everybody who holds the functions has the bug, and loses it at the end. Never: writes a file.
"""

import contextlib
import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import CO_NEWLOCALS
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Final

ROOMS: Final = ("thinfs.persistent", "thinfs.pool")


@dataclass(frozen=True, slots=True)
class Plant:
    """`pattern` and `replacement` as of re.sub, with re.MULTILINE and re.DOTALL."""

    name: str
    pattern: str
    replacement: str


def sources() -> Iterator[tuple[str, str]]:
    """(module, text) of the engine, from its files; a compiled one is refused."""
    for room in ROOMS:
        package = importlib.import_module(room)
        for path in sorted(Path(str(package.__file__)).parent.glob("*.py")):
            name = room if path.stem == "__init__" else f"{room}.{path.stem}"
            file = importlib.import_module(name).__file__
            assert file == str(path), f"{name} is not interpreted: {file}; bugs are planted in the pure engine only"
            yield name, path.read_text()


@contextlib.contextmanager
def planted(plant: Plant) -> Iterator[str]:
    """The engine has the bug meanwhile; tells in which module."""
    flags = re.MULTILINE | re.DOTALL
    found = [(name, text) for name, text in sources() for _ in re.finditer(plant.pattern, text, flags)]
    assert len(found) == 1, f"{plant.name}: its place is in {[name for name, _ in found] or 'no module'}, not in one"
    name, text = found[0]
    changed = re.sub(plant.pattern, plant.replacement, text, flags=flags)
    with replaced(name, changed):
        yield name


@contextlib.contextmanager
def replaced(name: str, text: str) -> Iterator[int]:
    """The functions of a module have the code of `text` meanwhile; tells how many differ."""
    module = importlib.import_module(name)
    file = str(module.__file__)
    old, changed = (_codes(compile(t, file, "exec", dont_inherit=True)) for t in (Path(file).read_text(), text))
    # A property's functions have one name between them: the line tells which is which.
    new = {
        (one.co_qualname, one.co_firstlineno): other
        for one, other in zip(old, changed, strict=True)
        if one.co_qualname == other.co_qualname
    }
    before: list[tuple[FunctionType, CodeType]] = []
    try:
        for function in functions(module):
            code = new.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
            if code is not None and _differs(function.__code__, code):
                before.append((function, function.__code__))
                function.__code__ = code
        assert before, f"{name}: no function differs"
        yield len(before)
    finally:
        for function, code in before:
            function.__code__ = code


def functions(module: ModuleType) -> Iterator[FunctionType]:
    """Those that the module defines, methods and properties of its classes included."""
    for value in list(vars(module).values()):
        if inspect.isfunction(value) and value.__module__ == module.__name__:
            yield inspect.unwrap(value)
        elif inspect.isclass(value) and value.__module__ == module.__name__:
            for member in vars(value).values():
                for part in _parts(member):
                    if inspect.isfunction(part) and part.__module__ == module.__name__:
                        yield inspect.unwrap(part)


def _parts(member: object) -> tuple[object, ...]:
    if isinstance(member, property):
        return member.fget, member.fset
    if isinstance(member, staticmethod | classmethod):
        return (member.__func__,)
    return (member,)


def _codes(code: CodeType) -> list[CodeType]:
    """Of functions and classes, not of what is nested in functions: that goes with them."""
    found = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found.append(constant)
            if not constant.co_flags & CO_NEWLOCALS:
                found += _codes(constant)
    return found


def _differs(one: CodeType, other: CodeType) -> bool:
    """In what they do: lines and places are not compared."""
    if (one.co_code, one.co_names, one.co_varnames) != (other.co_code, other.co_names, other.co_varnames):
        return True
    if len(one.co_consts) != len(other.co_consts):
        return True
    return any(
        _differs(a, b) if isinstance(a, CodeType) and isinstance(b, CodeType) else (type(a), a) != (type(b), b)
        for a, b in zip(one.co_consts, other.co_consts, strict=True)
    )
