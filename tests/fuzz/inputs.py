"""Hostile input at the outermost door: lines of the control socket, in them tables, messages, names, argument lists.

Promises: inputs are made by seed from grammars with hostile words, then bent; each is answered within SECONDS with a
value or an error of the tree: no bug logged, no connection lost, and the pool beside it goes on. Never names a device
of the machine.
"""

import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import trio
import trio.testing

from thinfs.errors import ThinfsError
from thinfs.server.server import ControlServer
from thinfs.userspace.devices import DeviceMapper, open_device_mapper

SECONDS = 20.0
MIB = 1 << 20

NUMBERS = (
    "0", "1", "-1", "8", "127", "128", "129", "512", "65536", "2097152", "4294967295", "4294967296",
    "9223372036854775807",
    "18446744073709551615", "18446744073709551616", "9" * 40, "9" * 5000, "0x10", "1e3", "1.5", "+1", "00", " 1", "",
    "٣", "½", "NaN", "1_000", "-0",
)  # fmt: skip
WORDS = (
    "", " ", "a", "x" * 127, "x" * 128, "x" * 5000, ".", "..", "/", "a/b", "é", "日本", "\udcff", "\ud800", "\0",
    "a\0b",
    "\n", "a\nb", "\t", "\x1b[31m", "\\", "\\ ", "'", '"', "%s%n", "$(id)", "`id`", "*", "-", "--", "-n", "{}", "null",
    "1:3", "999:1", "4294967295:1", "-1:0", "/nonexistent", "/dev/mapper/p", "/dev/mapper/t", "/dev/mapper/",
    "/dev/mapper/nope", "/proc/self", "/tmp",
)  # fmt: skip
TARGETS = ("linear", "thin", "thin-pool", "zero", "error", "striped", "THIN", "")
FEATURES = ("skip_block_zeroing", "ignore_discard", "no_discard_passdown", "read_only", "error_if_no_space", "bogus")
MESSAGES = (
    "create_thin", "create_snap", "delete", "set_transaction_id", "reserve_metadata_snap", "release_metadata_snap",
    "@cancel_deferred_remove", "", "bogus",
)  # fmt: skip
VERBS = ("create", "load", "clear", "remove", "rename", "message", "status", "table", "info", "deps", "list", "targets")
COMMANDS = (
    "create", "reload", "load", "clear", "remove", "remove_all", "rename", "message", "status", "table", "info", "deps",
    "ls", "targets", "version", "help", "mknodes", "mangle", "wipe_table", "suspend", "resume", "splitname", "stats",
    "",
)  # fmt: skip
OPTIONS = (
    "--table", "-u", "-c", "-C", "-o", "--noheadings", "--separator", "--target", "--inactive", "-j", "-m", "-f",
    "--retry",
    "--deferred", "-r", "--notable", "-n", "--noflush", "--nolockfs", "-S", "-O", "--tree", "--exec", "--concise",
    "-v", "-y",
    "--bogus", "--ta", "--", "-", "-h", "--setuuid", "--showkeys", "--addnodeoncreate",
)  # fmt: skip


class Inputs:
    """One seed's worth. `files` are scratch files that a table may name."""

    def __init__(self, seed: int, files: tuple[str, ...]) -> None:
        self.random = Random(seed)
        self._files = files

    def number(self) -> str:
        chance = self.random
        return chance.choice(NUMBERS) if chance.random() < 0.5 else str(chance.randrange(1 << chance.randrange(1, 70)))

    def word(self) -> str:
        return self.random.choice((*WORDS, *self._files, *self._files, "p", "t", "p", "t", self.number()))

    def name(self) -> str:
        return self.random.choice(("p", "t", "x", "y", self.word()))

    def table(self) -> str:
        return "\n".join(self._table_line() for _ in range(self.random.choice((1, 1, 1, 2, 3, 0))))

    def _table_line(self) -> str:
        chance = self.random
        target = chance.choice(TARGETS)
        device = chance.choice((*self._files, self.word()))
        params: Mapping[str, list[str]] = {
            "linear": [device, self.number()],
            "thin": ["/dev/mapper/p", self.number(), *([device] if chance.random() < 0.3 else [])],
            "thin-pool": [
                *chance.sample(self._files, 2), chance.choice(("128", self.number())), self.number(),
                *(
                    [str(chance.randrange(8)), *chance.choices(FEATURES, k=chance.randrange(4))]
                    if chance.random() < 0.7 else []
                ),
            ],
        }  # fmt: skip
        words = [chance.choice(("0", self.number())), chance.choice(("8", "2048", self.number())), target]
        words += params.get(target, [self.word() for _ in range(chance.randrange(3))])
        for _ in range(chance.choice((0, 0, 1, 2))):
            self._bend_words(words)
        return " ".join(words)

    def message(self) -> str:
        words = [self.random.choice(MESSAGES), *(self.number() for _ in range(self.random.choice((0, 1, 1, 2, 2, 3))))]
        if self.random.random() < 0.3:
            self._bend_words(words)
        return " ".join(words)

    def _bend_words(self, words: list[str]) -> None:
        at = self.random.randrange(len(words) + 1)
        what = self.random.randrange(3)
        if what == 0 and at < len(words):
            del words[at]
        elif what == 1 and at < len(words):
            words[at] = self.word()
        else:
            words.insert(at, self.word())

    def argv(self) -> list[str]:
        words = [self.random.choice(COMMANDS)]
        for _ in range(self.random.randrange(6)):
            kind = self.random.randrange(6)
            if kind == 0:
                words.append(self.random.choice(OPTIONS))
            elif kind == 1:
                words += ["--table", self.table()]
            elif kind == 2:
                words += self.message().split(" ")
            else:
                words.append(self.name())
        return words

    def request(self) -> Any:
        """An object for the socket, more or less."""
        chance = self.random
        call = chance.choice(
            (*VERBS, "dmsetup", "dmsetup", "dmsetup", "open", "read", "write", "discard", "flush", "server")
        )
        values: dict[str, Callable[[], Any]] = {
            "name": self.name, "new_name": self.word, "table": self.table, "uuid": self.word, "message": self.message,
            "read_only": lambda: chance.random() < 0.3, "deferred": lambda: chance.random() < 0.3,
            "noflush": lambda: chance.random() < 0.5, "inactive": lambda: chance.random() < 0.5,
            "sector": self._integer, "minor": self._integer,
            "handle": lambda: chance.choice((1, 1, 1, 2, self._integer())),
            "offset": self._integer, "length": self._integer,
            "data": lambda: chance.choice(("", "QUJD", "A" * 5464, self.word())),
            "argv": self.argv, "cwd": self.word,
        }  # fmt: skip
        wanted = {
            "create": ["name", "table", "uuid", "read_only"], "load": ["name", "table", "read_only"], "clear": ["name"],
            "remove": ["name", "deferred"], "rename": ["name", "new_name"], "message": ["name", "message", "sector"],
            "status": ["name", "noflush"], "table": ["name", "inactive"], "info": ["name"], "deps": ["name"],
            "open": ["name"], "read": ["handle", "offset", "length"], "write": ["handle", "offset", "data"],
            "discard": ["handle", "offset", "length"], "flush": ["handle"], "dmsetup": ["argv", "cwd"],
        }.get(call, [])  # fmt: skip
        arguments = {name: values[name]() for name in wanted if chance.random() < 0.95}
        if chance.random() < 0.1:
            arguments[chance.choice(list(values))] = self.anything()
        return {"call": call, "args": arguments} if chance.random() < 0.97 else self.anything()

    def _integer(self) -> int:
        chance = self.random
        return chance.choice(
            (0, 1, 511, 512, 4096, 65536, -1, -512, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30)
        )

    def anything(self, depth: int = 3) -> Any:
        chance = self.random
        kind = chance.randrange(9)
        if kind > 6 and depth:
            if kind == 7:
                return [self.anything(depth - 1) for _ in range(chance.randrange(4))]
            return {self.word(): self.anything(depth - 1) for _ in range(chance.randrange(4))}
        return chance.choice((None, True, False, self.word(), self._integer(), 1.5, float("inf"), self.number()))

    def line(self) -> bytes:
        """A request, or one that is broken on its way."""
        data = bytearray(json.dumps(self.request()).encode("ascii"))
        chance = self.random
        if chance.random() < 0.15:
            for _ in range(chance.randrange(1, 4)):
                at = chance.randrange(len(data) + 1)
                kind = chance.randrange(4)
                if kind == 0:
                    data[at:at] = chance.choice(
                        (b"\xff", b"\0", b'"', b"{", b"[" * 5000, b"\\ud800", b"1" * 5000, b"\r")
                    )
                elif kind == 1:
                    del data[at : at + chance.randrange(1, 9)]
                elif at < len(data):
                    data[at] = chance.randrange(256)
        return bytes(data).replace(b"\n", b" ") + b"\n"


class Bugs(logging.Handler):
    """What the server calls a bug of ours."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


@dataclass(slots=True)
class Result:
    nr_inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)


@asynccontextmanager
async def _pool(directory: Path) -> AsyncIterator[tuple[DeviceMapper, tuple[str, ...]]]:
    files = []
    for name, size in (
        ("meta", 2 * MIB),
        ("data", 16 * MIB),
        ("a", MIB),
        ("b", 3 * MIB),
        ("short", 1000),
        ("empty", 0),
    ):
        path = directory / name
        path.write_bytes(b"")
        with path.open("r+b") as file:
            file.truncate(size)
        files.append(str(path))
    async with open_device_mapper(str(directory / "mnt")) as mapper:
        await mapper.create("p", f"0 {16 * MIB // 512} thin-pool {files[0]} {files[1]} 128 0 1 error_if_no_space")
        await mapper.message("p", "create_thin 0")
        await mapper.create("t", "0 2048 thin /dev/mapper/p 0")
        yield mapper, tuple(files)


async def _one(mapper: DeviceMapper, line: bytes, text: str) -> str:
    """What came of it: `ok`, the errno, or why it is a failure."""
    ours, its = trio.testing.memory_stream_pair()
    server = ControlServer(mapper, mapper.mount_dir)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.handle, its)
        buffer = b""
        with trio.move_on_after(SECONDS) as limit:
            await ours.send_all(json.dumps({"call": "open", "args": {"name": "t"}}).encode() + b"\n" + line)
            answers = 0
            outcome = "FAILED: the connection was closed"
            while data := await ours.receive_some():
                *lines, buffer = (buffer + data).split(b"\n")
                for answer in map(json.loads, lines):
                    if "need" in answer:
                        await ours.send_all(json.dumps({"text": text}).encode("ascii", "replace") + b"\n")
                    elif "ok" in answer or "error" in answer:
                        answers += 1
                        outcome = (
                            f"errno {answer['error']}" if "error" in answer else "ok" if answer["ok"] != 1 else "exit 1"
                        )
                if answers == 2:
                    break
        await ours.aclose()
        if limit.cancelled_caught:
            outcome = f"FAILED: no answer within {SECONDS:.0f} s"
        nursery.cancel_scope.cancel()
    return outcome


async def _as_before(mapper: DeviceMapper) -> bool:
    """What the input has made goes; False if then not all is as at the start."""
    with trio.move_on_after(SECONDS / 10):  # a thin whose pool was wiped holds its I/O
        return await _restored(mapper)
    return False


async def _restored(mapper: DeviceMapper) -> bool:
    try:
        for info in reversed(await mapper.list()):
            await mapper.clear(info.name)
            if info.suspended:
                await mapper.resume(info.name)
            if info.name not in ("p", "t"):
                await mapper.remove(info.name)
        device = await mapper.open("t")
        await device.write(0, bytes(4096))
        await device.flush()
        await device.aclose()
        return (await mapper.status("p")).split()[7] == "rw" and len(await mapper.list()) == 2
    except ThinfsError:
        return False


async def _batch(seeds: Iterator[int], directory: Path, bugs: Bugs, result: Result) -> None:
    async with _pool(directory) as (mapper, files):
        for seed in seeds:
            inputs = Inputs(seed, files)
            line, text = inputs.line(), inputs.table()
            outcome = await _one(mapper, line, text)
            result.nr_inputs += 1
            result.outcomes[outcome] += 1
            failures = [*bugs.found, *([outcome] if "FAILED" in outcome else [])]
            bugs.found.clear()
            result.failures += [(failure[:300], f"seed {seed}: {line[:600]!r}") for failure in failures]
            if failures or not await _as_before(mapper):
                return


async def _run(seeds: range, directory: Path, result: Result) -> None:
    bugs = Bugs()
    logging.getLogger("thinfs").addHandler(bugs)
    try:
        left = iter(seeds)
        while result.nr_inputs < len(seeds):
            await _batch(left, directory, bugs, result)
    finally:
        logging.getLogger("thinfs").removeHandler(bugs)


def run(seeds: range, directory: Path) -> Result:
    result = Result()
    directory.mkdir(exist_ok=True)
    trio.run(_run, seeds, directory, result)
    return result
