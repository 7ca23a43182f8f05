"""dmsetup's command line: options anywhere between the words, long ones by any unambiguous beginning.

The table below is the option list that `dmsetup help` prints (1.02.185). What concerns udev, node
permissions or read-ahead is accepted and has no effect: there is no udev and no node to set up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from thinfs.errors import InvalidArgument


class BadOption(InvalidArgument):
    """An option dmsetup does not have, or one without its value."""


# name: (short letters, takes a value)
OPTIONS: Mapping[str, tuple[str, bool]] = {
    "addnodeoncreate": ("", False),
    "addnodeonresume": ("", False),
    "checks": ("", False),
    "columns": ("cC", False),
    "concise": ("", False),
    "cookie": ("", True),
    "deferred": ("", False),
    "exec": ("", True),
    "force": ("f", False),
    "gid": ("G", True),
    "help": ("h", False),
    "inactive": ("", False),
    "major": ("j", True),
    "manglename": ("", True),
    "minor": ("m", True),
    "mode": ("M", True),
    "nameprefixes": ("", False),
    "noflush": ("", False),
    "noheadings": ("", False),
    "nolockfs": ("", False),
    "noopencount": ("", False),
    "notable": ("n", False),
    "noudevrules": ("", False),
    "noudevsync": ("", False),
    "options": ("o", True),
    "readahead": ("", True),
    "readonly": ("r", False),
    "retry": ("", False),
    "select": ("S", True),
    "separator": ("", True),
    "setuuid": ("", False),
    "showkeys": ("", False),
    "sort": ("O", True),
    "table": ("", True),
    "target": ("", True),
    "tree": ("", False),
    "udevcookie": ("", True),
    "uid": ("U", True),
    "uuid": ("u", True),
    "verbose": ("v", False),
    "verifyudev": ("", False),
    "version": ("", False),
    "yes": ("y", False),
}
_BY_LETTER = {letter: name for name, (letters, _) in OPTIONS.items() for letter in letters}


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The command ("" when none was given), its words, and the options with their values ("" for a flag)."""

    command: str
    words: tuple[str, ...]
    options: Mapping[str, str]

    def has(self, option: str) -> bool:
        return option in self.options

    def value(self, option: str) -> str | None:
        return self.options.get(option)


def parse(argv: Sequence[str]) -> CommandLine:
    """Raises BadOption with dmsetup's own sentence about it."""
    words: list[str] = []
    options: dict[str, str] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            words += rest
            break
        if word.startswith("--"):
            given, equals, value = word[2:].partition("=")
            name = _long_name(given)
            if not OPTIONS[name][1]:
                if equals:
                    raise BadOption(f"option '--{name}' doesn't allow an argument")
            elif not equals:
                if not rest:
                    raise BadOption(f"option '--{name}' requires an argument")
                value = rest.pop(0)
            options[name] = value
        elif word.startswith("-") and word != "-":
            _short(word[1:], rest, options)
        else:
            words.append(word)
    command = words.pop(0) if words else ""
    return CommandLine(command, tuple(words), options)


def _long_name(given: str) -> str:
    if given in OPTIONS:
        return given
    matches = [name for name in OPTIONS if name.startswith(given)]
    if len(matches) > 1:
        raise BadOption(f"option '--{given}' is ambiguous: {', '.join(matches)}")
    if not matches:
        raise BadOption(f"unrecognized option '--{given}'")
    return matches[0]


def _short(letters: str, rest: list[str], options: dict[str, str]) -> None:
    while letters:
        letter, letters = letters[0], letters[1:]
        name = _BY_LETTER.get(letter)
        if name is None:
            raise BadOption(f"invalid option -- '{letter}'")
        if OPTIONS[name][1]:
            if not letters and not rest:
                raise BadOption(f"option requires an argument -- '{letter}'")
            options[name] = letters or rest.pop(0)
            return
        options[name] = ""
