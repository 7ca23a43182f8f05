"""Random histories: operations of kernel_backend.batch, chosen by a seed so that most of them succeed.

Promises: the same seed, variant and length give the same history; any part of a history is a history too (what
then fails must fail on both sides), which is what makes shrinking possible. Writes are flushed one by one, so
that the kernel's timers cannot matter. `{meta}`, `{data}` and `{origin}` stand for the disks of either side.
"""

from collections.abc import Sequence
from random import Random
from typing import Final

from kernel_backend.batch import Operation

from . import shapes
from .disks import DISK
from .variants import PAGE, POOL, Variant

_NR_IDS: Final = 14

_WEIGHTS: Final = {
    "create_thin": 4, "create_snap": 6, "delete": 4, "activate": 8, "deactivate": 4, "write_block": 30,
    "write_part": 25, "write_blocks": 6, "read": 20, "discard": 14, "status": 4, "grow": 1, "metadata_snap": 2,
    "reopen": 1, "transaction_id": 1, "refused": 3, "suspend": 1, "turn": 1,
}  # fmt: skip
_REFUSED: Final = ("bogus", "create_thin x", "create_snap 1", "delete 99", "create_thin 16777216", "delete 0 1")


class Maker:
    """Keeps track of what should be there, to choose sensibly."""

    def __init__(self, variant: Variant, seed: int, kernel: str) -> None:
        # Refused, a second reservation still takes blocks for a moment in 6.1, as in the engine; in 6.12 it takes
        # others, and what is allocated after it lies elsewhere (seen).
        self._reserves_twice = kernel == "6.1"
        self._variant = variant
        self._random = Random(f"{variant.name} {seed}")
        self._operations: list[Operation] = []
        self._ids: set[int] = set()
        self._active: dict[int, str] = {}
        self._held = False
        self._read_only = False
        self._nr_blocks = variant.data_blocks

    def make(self, length: int) -> list[Operation]:
        self._say("create", POOL, self._pool_table())
        kinds, weights = list(_WEIGHTS), list(_WEIGHTS.values())
        while len(self._operations) < length:
            getattr(self, f"_{self._random.choices(kinds, weights)[0]}")()
        return [*self._operations, ("status", POOL)]

    def _say(self, *operation: str | int | bool) -> None:
        self._operations.append(operation)

    def _pool_table(self, *, read_only: bool = False) -> str:
        variant = self._variant
        count, _, rest = variant.features.partition(" ")
        features = f"{int(count) + 1} {rest} read_only".replace("  ", " ") if read_only else variant.features
        length = self._nr_blocks * variant.block_sectors
        return f"0 {length} thin-pool {{meta}} {{data}} {variant.block_sectors} 0 {features}"

    def _some_id(self, otherwise: int) -> int:
        if self._ids and self._random.random() < 0.93:
            return self._random.choice(sorted(self._ids))
        return self._random.randrange(otherwise)

    def _some_active(self) -> str | None:
        return self._active[self._random.choice(sorted(self._active))] if self._active else None

    def _some_block(self, room: int = 1) -> int:
        last = self._variant.thin_blocks - room
        if self._variant.scattered and self._random.random() < 0.7:
            return self._random.randrange(last)
        return self._random.randrange(min(last, 300) if self._random.random() < 0.5 else min(last, 12))

    def _seed(self) -> int:
        return self._random.randrange(1, 1 << 30)

    def _create_thin(self) -> None:
        dev_id = self._random.randrange(_NR_IDS)
        self._say("message", POOL, f"create_thin {dev_id}")
        self._ids.add(dev_id)

    def _create_snap(self) -> None:
        origin, dev_id = self._some_id(20), self._random.randrange(_NR_IDS)
        name = self._active.get(origin)
        if name:
            self._say_suspend(name)
        self._say("message", POOL, f"create_snap {dev_id} {origin}")
        if name:
            self._say("resume", name)
        if origin in self._ids:
            self._ids.add(dev_id)

    def _delete(self) -> None:
        dev_id = self._some_id(20)
        if dev_id in self._active and self._random.random() < 0.8:
            self._say("remove", self._active.pop(dev_id))
        self._say("message", POOL, f"delete {dev_id}")
        if dev_id not in self._active:
            self._ids.discard(dev_id)

    def _activate(self) -> None:
        dev_id = self._some_id(16)
        if dev_id in self._active:
            return
        length = self._variant.thin_blocks * self._variant.block_sectors
        origin = " {origin}" if self._variant.origin_bytes and dev_id % 2 else ""
        self._say("create", f"t{dev_id}", f"0 {length} thin /dev/mapper/{POOL} {dev_id}{origin}")
        if dev_id in self._ids:
            self._active[dev_id] = f"t{dev_id}"

    def _deactivate(self) -> None:
        if self._active:
            self._say("remove", self._active.pop(self._random.choice(sorted(self._active))))

    def _write(self, name: str, offset: int, length: int) -> None:
        self._say("write_pattern", name, offset, length, self._seed())
        self._say("flush", name)

    def _write_block(self) -> None:
        if name := self._some_active():
            size = self._variant.block_bytes
            self._write(name, self._some_block() * size, size)

    def _write_part(self) -> None:
        if name := self._some_active():
            size = self._variant.block_bytes
            at = self._random.randrange(size // PAGE) * PAGE
            length = min(self._random.choice((PAGE, 2 * PAGE, 4 * PAGE)), size - at)
            self._write(name, self._some_block() * size + at, length)
            if self._random.random() < 0.2:
                self._say("status", name)

    def _write_blocks(self) -> None:
        if name := self._some_active():
            size, begin = self._variant.block_bytes, self._some_block(room=6)
            for block in range(begin, begin + self._random.randrange(1, 6)):
                self._write(name, block * size, size)

    def _read(self) -> None:
        if name := self._some_active():
            size = self._variant.block_bytes
            at = self._random.randrange(16) * PAGE
            self._say("read_digest", name, self._some_block(room=2) * size + at, self._random.choice((PAGE, size)))

    def _discard(self) -> None:
        if name := self._some_active():
            size, begin = self._variant.block_bytes, self._some_block()
            end = min(self._variant.thin_blocks, begin + self._random.choice((1, 1, 2, 5, 20, 100)))
            cut = self._random.choice((0, 0, PAGE))
            if cut_by_the_block_layer(begin * size + cut, size):
                return
            self._say("discard", name, begin * size + cut, (end - begin) * size - cut)
            self._say("flush", name)
            if self._random.random() < 0.3:
                self._say("status", name)

    def _status(self) -> None:
        self._say("status", POOL)

    def _grow(self) -> None:
        if not self._read_only:
            most = 8 if self._variant.name == "full-data" else 200
            self._nr_blocks = min(self._nr_blocks + self._random.randrange(most), self._variant.data_blocks + 4000)
            self._reload()

    def _reload(self, *, read_only: bool = False) -> None:
        self._say("load", POOL, self._pool_table(read_only=read_only))
        self._say("suspend", POOL)
        self._say("resume", POOL)
        self._say("status", POOL)
        self._read_only = read_only

    def _turn(self) -> None:
        """Read-only, or back."""
        if self._variant.read_only_reloads:
            self._reload(read_only=not self._read_only)

    def _say_suspend(self, device: str) -> None:
        """With a frozen file system or without: nothing is mounted, so the answers are the same."""
        noflush, lockfs = False, self._random.random() < 0.5
        self._say("suspend", device, noflush, lockfs)

    def _suspend(self) -> None:
        name = self._some_active()
        for device in (name, POOL) if name else (POOL,):
            self._say_suspend(device)
            self._say("resume", device)

    def _metadata_snap(self) -> None:
        release = self._held and self._random.random() < 0.8
        if self._held and not release and not self._reserves_twice:
            return
        self._say("message", POOL, "release_metadata_snap" if release else "reserve_metadata_snap")
        self._held = not release

    def _reopen(self) -> None:
        for dev_id in sorted(self._active):
            self._say("remove", self._active[dev_id])
        self._active.clear()
        self._say("remove", POOL)
        self._say("create", POOL, self._pool_table(read_only=self._read_only))

    def _transaction_id(self) -> None:
        self._say("message", POOL, f"set_transaction_id {self._random.choice((0, 1))} 1")

    def _refused(self) -> None:
        self._say("message", POOL, self._random.choice(_REFUSED))


def cut_by_the_block_layer(offset: int, granularity: int) -> bool:
    """Does a kernel split a discard that begins here inside a block, and so lose that block?

    Its block layer ends the first bio at the next multiple of the granularity, found by a macro that is right for
    powers of two only: with blocks of 192 KiB a discard of block 10 alone does nothing (seen, 6.1 and 6.12).
    The engine is asked for the range as it is, and unmaps the block.
    """
    sector, mask = offset // 512, granularity // 512 - 1
    return granularity & (granularity - 1) != 0 and ((sector - 1) | mask) + 1 != sector


def make(variant: Variant, seed: int, kernel: str = "6.1") -> list[Operation]:
    if variant.shape:
        return shapes.make(variant, seed, kernel)
    return Maker(variant, seed, kernel).make(variant.length)


def endings(operations: Sequence[Operation]) -> list[Operation]:
    """What takes away the devices a history has made."""
    names = dict.fromkeys(str(operation[1]) for operation in operations if operation[0] == "create")
    return [("remove", name) for name in reversed(names)]


def may_hang(operations: Sequence[Operation]) -> bool:
    """Does some I/O go to a device that is suspended, itself or its pool? It would wait for ever.

    So does a kernel's suspend of a thin whose pool is suspended.
    """
    suspended: set[str] = set()
    for kind, name, *_ in operations:
        if kind == "suspend":
            if POOL in suspended and name != POOL:
                return True
            suspended.add(str(name))
        elif kind in ("resume", "remove"):
            suspended.discard(str(name))
        elif kind in ("write_pattern", "read_digest", "discard", "flush") and suspended & {name, POOL}:
            return True
    return False


def as_commands(operations: Sequence[Operation]) -> str:
    """The history as a script of dmsetup and its like, to be read or run."""
    return "\n".join(map(_as_command, operations))


def _as_command(operation: Operation) -> str:
    kind, name, *rest = operation
    device = f"/dev/mapper/{name}"
    match kind:
        case "create":
            return f'dmsetup create {name} --table "{rest[0]}"'
        case "load":
            return f'dmsetup load {name} --table "{rest[0]}"'
        case "message":
            return f'dmsetup message {name} 0 "{rest[0]}"'
        case "write_pattern":
            return f"write {device} offset={rest[0]} length={rest[1]} pattern={rest[2]}"
        case "read_digest":
            return f"read {device} offset={rest[0]} length={rest[1]} | digest"
        case "discard":
            return f"blkdiscard --offset {rest[0]} --length {rest[1]} {device}"
        case "flush":
            return f"sync {device}"
        case _ if kind == DISK:
            return f"# the {name} disk from now on: {rest[0]}"
    return f"dmsetup {kind} {name}"
