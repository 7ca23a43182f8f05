"""One pool, and damaged ones made of it, in the hands of thinfs and of both versions of thin-provisioning-tools.

Promises: returns what differs, one line each, and counts what was compared. Where the two versions disagree with each
other, the line here says which is followed and why.
"""

import itertools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.thin_tools import V0_9_0, V1_1_0, judge
from tests.tools.damage import KINDS, damaged
from thinfs.blockdev import FileDevice
from thinfs.tools.walk import PoolTrees

METADATA_BYTES = 8 << 20
_TIMEOUT = 120


@dataclass(slots=True)
class Findings:
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    out: bytes
    err: bytes


def _run(*words: str | Path) -> Answer:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT)
    return Answer(done.returncode, done.stdout, done.stderr)


def thinfs(*words: str | Path) -> Answer:
    return _run(sys.executable, "-m", "thinfs.cli.main", *words)


def thin_0(tool: str, *words: str | Path) -> Answer:
    return _run(judge(tool, V0_9_0), *words)


def thin_1(tool: str, *words: str | Path) -> Answer:
    return _run(judge(tool, V1_1_0), *words)


def _dev_ids(pool: Path) -> list[int]:
    device = FileDevice(str(pool), read_only=True)
    try:
        return list(PoolTrees.open(device).roots())
    finally:
        device.close()


def blank(path: Path, nr_bytes: int = METADATA_BYTES) -> Path:
    with path.open("wb") as file:
        file.truncate(nr_bytes)
    return path


def sound(pool: Path, directory: Path, seed: int) -> Findings:
    found = Findings()
    random = Random(seed)

    def same(what: str, ours: object, theirs: object) -> None:
        found.counts[f"sound: {what}"] += 1
        if ours != theirs:
            found.wrong.append(f"{pool.name}: {what} differs")

    for version, thin in (("0.9", thin_0), ("1.x", thin_1)):
        same(f"check exits as {version}", thinfs("check", pool).status, thin("thin_check", pool).status)
        same(f"ls as {version}", _ls(thinfs("ls", "-o", _FIELDS, pool)), _ls(thin("thin_ls", "-o", _FIELDS, pool)))
        for region in ((0, 20_000), (random.randrange(1000), 1000 + random.randrange(1000))):
            word = f"{region[0]}..{region[1]}"
            mine, other_s = thinfs("rmap", "--once", "--region", word, pool), thin("thin_rmap", "--region", word, pool)
            # 0.9 leaves the order of what begins in one block to chance.
            in_order = mine.out == other_s.out if version == "1.x" else _lines(mine) == _lines(other_s)
            same(f"rmap as {version}", in_order, True)
        dev_ids = _dev_ids(pool)
        for one, other in [random.choice(list(itertools.product(dev_ids, dev_ids))) for _ in range(2)]:
            words = ("--snap1", str(one), "--snap2", str(other), pool)
            ours, theirs = thinfs("delta", *words).out.rstrip(), thin("thin_delta", *words).out.rstrip()
            # 1.x does not say that a metadata snapshot is held, and ends without a newline.
            same(f"delta as {version}", ours if version == "0.9" else _HELD.sub(b"", ours), theirs)
    verbose = ("--verbose", "--snap1", str(dev_ids[0]), "--snap2", str(dev_ids[-1]), pool)
    same("verbose delta as 0.9", thinfs("delta", *verbose).out, thin_0("thin_delta", *verbose).out)
    dump = thinfs("dump", pool).out
    same("dump as 0.9", dump, thin_0("thin_dump", pool).out)
    xml = directory / "xml"
    xml.write_bytes(dump)
    same("restore exits", thinfs("restore", "-i", xml, "-o", blank(directory / "restored")).status, 0)
    same("dump, restore, dump", thinfs("dump", directory / "restored").out, dump)
    _passes(same, directory / "restored", "restored")
    xml.write_bytes(thin_1("thin_dump", pool).out)
    same("restore of a dump of 1.x exits", thinfs("restore", "-i", xml, "-o", blank(directory / "restored")).status, 0)
    same("dump of 1.x, restore, dump", thinfs("dump", directory / "restored").out, dump)
    _passes(same, directory / "restored", "restored from 1.x")
    same("repair exits", thinfs("repair", "-i", pool, "-o", blank(directory / "repaired")).status, 0)
    same("repair, dump", thinfs("dump", directory / "repaired").out, dump)
    _passes(same, directory / "repaired", "repaired")
    return found


_HELD = re.compile(rb' metadata_snap="\d+"')
_FIELDS = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS,TRANSACTION,CREATE_TIME,SNAP_TIME"


def _ls(answer: Answer) -> list[list[bytes]]:
    return [line.split() for line in answer.out.splitlines() if line.split()[:1] != [b"Scanning"]]


def _lines(answer: Answer) -> list[bytes]:
    return sorted(answer.out.splitlines())


def _passes(same: object, pool: Path, what: str) -> None:
    assert callable(same)
    same(f"thinfs check of what was {what}", thinfs("check", pool).status, 0)
    same(f"0.9 check of what was {what}", thin_0("thin_check", pool).status, 0)
    same(f"1.x check of what was {what}", thin_1("thin_check", pool).status, 0)


def each_damage(pool: Path, directory: Path, seed: int, kinds: Sequence[str] = tuple(KINDS)) -> Iterator[Findings]:
    for kind in kinds:
        yield hurt(damaged(pool, directory / "damaged", kind, seed), directory, kind, f"{pool.name}, {kind}")


def hurt(pool: Path, directory: Path, kind: str, label: str) -> Findings:
    found = Findings()
    ours, older, newer = thinfs("check", pool), thin_0("thin_check", pool), thin_1("thin_check", pool)
    statuses = ours.status != 0, older.status != 0, newer.status != 0
    found.counts[f"{kind}: check {_refused(statuses)}"] += 1
    if not statuses[0] and (statuses[1] or statuses[2]):
        found.wrong.append(f"{label}: check passes, theirs refuse ({_refused(statuses)})")
    for name in ("check", "dump", "ls", "map", "repair"):
        words = ("-i", pool, "--list") if name == "repair" else (pool,)
        answer = thinfs(name, *words)
        if b"Traceback" in answer.err or answer.status not in (0, 1):
            found.wrong.append(f"{label}: {name} ends with {answer.status}: {answer.err[-300:]!r}")
    repaired = thinfs("repair", *_SIZES, "-i", pool, "-o", blank(directory / "ours"))
    by_theirs = [
        thin("thin_repair", *_SIZES, "-i", pool, "-o", blank(directory / name)).status == 0
        and thin("thin_check", directory / name).status == 0
        for thin, name in ((thin_0, "theirs 0"), (thin_1, "theirs 1"))
    ]
    succeeded = repaired.status == 0 and not any(
        one("thin_check", directory / "ours").status for one in (thin_0, thin_1)
    )
    found.counts[f"{kind}: repair {_succeeded((succeeded, *by_theirs))}"] += 1
    if any(by_theirs) and not succeeded:
        found.wrong.append(f"{label}: theirs repair it, ours does not: {repaired.err[-300:]!r}")
    if succeeded and by_theirs[1]:
        nr_ours, nr_theirs = (_nr_mappings(directory / name) for name in ("ours", "theirs 1"))
        found.counts[f"{kind}: mappings saved, {_more(nr_ours, nr_theirs)}"] += 1
    return found


# What thin_repair wants to be told where the superblock is gone.
_SIZES = ("--data-block-size", "128", "--nr-data-blocks", "20000", "--transaction-id", "7")


def _nr_mappings(pool: Path) -> int:
    device = FileDevice(str(pool), read_only=True)
    try:
        return sum(one.mapped_blocks for one in PoolTrees.open(device).details().values())
    finally:
        device.close()


def _refused(statuses: tuple[bool, ...]) -> str:
    return "refused by " + (_names(statuses) or "none")


def _succeeded(statuses: tuple[bool, ...]) -> str:
    return "succeeds with " + (_names(statuses) or "none")


def _names(statuses: tuple[bool, ...]) -> str:
    return ", ".join(name for name, yes in zip(("thinfs", "0.9", "1.x"), statuses, strict=True) if yes)


def _more(ours: int, theirs: int) -> str:
    return "as many" if ours == theirs else "more by thinfs" if ours > theirs else "fewer by thinfs"
