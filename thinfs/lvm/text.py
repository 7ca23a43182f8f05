"""LVM's configuration text: parsed to nested dictionaries.

    file    := entry*
    entry   := name "=" value | name "{" entry* "}"
    value   := string | integer | float | "[" [value {"," value}] "]"
    name    := [A-Za-z0-9_.+-]+          "#" to the end of the line is a comment, not within strings

Promises: linear time, bounded depth; a name that is twice in one section, a number of more than 64 bits or a value
missing is BadMetadata with its line. Never: executes, includes or expands anything. Source: docs/reference/lvm.md, 4.
"""

import re
from collections.abc import Sequence
from typing import Final, TypeAlias

from thinfs.errors import BadMetadata

Scalar: TypeAlias = str | int | float
Value: TypeAlias = "Scalar | list[Scalar] | dict[str, Value]"
Section: TypeAlias = dict[str, Value]

_TOKEN: Final = re.compile(
    r"""(?P<space>[ \t\r\n]+|\#[^\n]*)
      | (?P<string>"[^"\\]*(?:\\.[^"\\]*)*")
      | (?P<word>[A-Za-z0-9_.+-]+)
      | (?P<mark>[={}\[\],])""",
    re.VERBOSE | re.DOTALL,
)
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_FLOAT: Final = re.compile(r"[+-]?[0-9]{1,20}\.[0-9]{1,20}")
_MAX_DEPTH: Final = 16
_MAX_INTEGER: Final = (1 << 64) - 1
_SHOWN: Final = 40


def parse_text(text: str) -> Section:
    return _Parser(text).file()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._kind = self._token = ""
        self._next()

    def _next(self) -> None:
        """The next token in `_kind` and `_token`; at the end both are empty."""
        while self._position < len(self._text):
            match = _TOKEN.match(self._text, self._position)
            if match is None:
                raise self._error(f"unexpected {self._text[self._position :][:_SHOWN]!r}")
            self._position = match.end()
            kind = match.lastgroup or ""
            if kind != "space":
                self._kind, self._token = kind, match.group()
                return
        self._kind = self._token = ""

    def _error(self, what: str) -> BadMetadata:
        return BadMetadata(f"line {self._text.count(chr(10), 0, self._position) + 1}: {what}")

    def _unexpected(self, wanted: str) -> BadMetadata:
        return self._error(f"{wanted} expected, not {self._token[:_SHOWN]!r}" if self._token else f"{wanted} missing")

    def file(self) -> Section:
        """Sections are kept on a stack: the depth of a text is its author's, that of Python's calls is not."""
        stack: list[Section] = [{}]
        while self._token or len(stack) > 1:
            section = stack[-1]
            if self._token == "}" and len(stack) > 1:
                stack.pop()
                self._next()
                continue
            if self._kind != "word":
                raise self._unexpected("a name" if len(stack) == 1 else "a name or }")
            name = self._token
            if name in section:
                raise self._error(f"{name[:_SHOWN]} is there twice")
            self._next()
            if self._token == "=":
                self._next()
                section[name] = self._value()
            elif self._token == "{":
                if len(stack) > _MAX_DEPTH:
                    raise self._error(f"sections nested deeper than {_MAX_DEPTH}")
                inner: Section = {}
                section[name] = inner
                stack.append(inner)
                self._next()
            else:
                raise self._unexpected("= or {")
        return stack[0]

    def _value(self) -> Scalar | list[Scalar]:
        if self._token != "[":
            return self._scalar()
        self._next()
        values: list[Scalar] = []
        while self._token != "]":
            if values:
                if self._token != ",":
                    raise self._unexpected(", or ]")
                self._next()
            values.append(self._scalar())
        self._next()
        return values

    def _scalar(self) -> Scalar:
        kind, token = self._kind, self._token
        value: Scalar
        if kind == "string":
            value = re.sub(r"\\(.)", r"\1", token[1:-1], flags=re.DOTALL)
        elif kind == "word" and _INTEGER.fullmatch(token):
            value = int(token)
            if abs(value) > _MAX_INTEGER:
                raise self._error(f"{token} is not a number of 64 bits")
        elif kind == "word" and _FLOAT.fullmatch(token):
            value = float(token)
        else:
            raise self._unexpected("a value")
        self._next()
        return value


# -- what a reader asks of a section; `where` names it in errors


def section_in(section: Section, key: str, where: str) -> Section:
    value = section.get(key)
    if not isinstance(value, dict):
        raise BadMetadata(f"{where}: section {key} {'is missing' if value is None else 'is a value'}")
    return value


def string_in(section: Section, key: str, where: str) -> str:
    value = section.get(key)
    if not isinstance(value, str):
        raise BadMetadata(f"{where}: {key} = {value!r} is not a string" if value is not None else _missing(where, key))
    return value


def number_in(section: Section, key: str, where: str, low: int, high: int) -> int:
    value = section.get(key)
    if not isinstance(value, int):
        raise BadMetadata(f"{where}: {key} = {value!r} is not a number" if value is not None else _missing(where, key))
    if not low <= value <= high:
        raise BadMetadata(f"{where}: {key} = {value} is not in {low}..{high}")
    return value


def words_in(section: Section, key: str, where: str) -> frozenset[str]:
    """A list of strings; also one string, or nothing."""
    value = section.get(key, [])
    words: Sequence[Scalar] = [value] if isinstance(value, str) and value else value if isinstance(value, list) else []
    if isinstance(value, dict | int | float) or not all(isinstance(word, str) for word in words):
        raise BadMetadata(f"{where}: {key} is not a list of words")
    return frozenset(str(word) for word in words)


def _missing(where: str, key: str) -> str:
    return f"{where}: {key} is missing"
