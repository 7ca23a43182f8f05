"""The words that shaped histories are written in: a script under construction, and the model's view of it so far.

Promises: every operation said is also answered by the model, so that a shape knows what is mapped and what is free.
Never: decides anything; tests/differential/shapes does.
"""

from collections.abc import Iterable
from random import Random
from typing import Final

from kernel_backend.batch import Operation

from .model import Model
from .variants import PAGE, POOL, Variant

_FLUSH_EVERY: Final = 16


class Script:
    def __init__(self, variant: Variant, seed: int, kernel: str) -> None:
        self.variant = variant
        self.kernel = kernel
        self.random = Random(f"{variant.name} {seed}")
        self.operations: list[Operation] = []
        self.active: dict[int, str] = {}
        self.features = variant.features
        self.low_water = variant.low_water
        self.nr_blocks = variant.data_blocks
        self.model = Model(variant, b"")

    def say(self, *operation: str | int | bool) -> None:
        self.operations.append(operation)
        self.model.answer(operation)

    @property
    def full(self) -> bool:
        """Has it the length of its variant's histories?"""
        return len(self.operations) >= self.variant.length

    @property
    def nr_free(self) -> int:
        used, of = self.model.used_blocks()
        return of - used

    # -- the pool

    def pool_table(self) -> str:
        sectors = self.variant.block_sectors
        words = f"{{meta}} {{data}} {sectors} {self.low_water} {self.features}"
        return f"0 {self.nr_blocks * sectors} thin-pool {words}"

    def create_pool(self) -> None:
        self.say("create", POOL, self.pool_table())

    def reload_pool(self, *, noflush: bool = False) -> None:
        self.say("load", POOL, self.pool_table())
        self.say("suspend", POOL, noflush, False)
        self.say("resume", POOL)
        self.status()

    def reopen(self) -> None:
        for dev_id in list(self.active):
            self.deactivate(dev_id)
        self.say("remove", POOL)
        self.create_pool()

    def message(self, text: str) -> None:
        self.say("message", POOL, text)

    def status(self, dev_id: int | None = None) -> None:
        self.say("status", POOL if dev_id is None else self.active[dev_id])

    def event_nr(self) -> None:
        self.say("event_nr", POOL)

    # -- thins

    def table(self, dev_id: int, blocks: int | None = None) -> str:
        length = (self.variant.thin_blocks if blocks is None else blocks) * self.variant.block_sectors
        return f"0 {length} thin /dev/mapper/{POOL} {dev_id}"

    def activate(self, dev_id: int) -> None:
        self.say("create", f"t{dev_id}", self.table(dev_id))
        self.active[dev_id] = f"t{dev_id}"

    def deactivate(self, dev_id: int) -> None:
        self.say("remove", self.active.pop(dev_id))

    def thin(self, dev_id: int) -> None:
        self.message(f"create_thin {dev_id}")
        self.activate(dev_id)

    def snap(self, dev_id: int, origin: int, *, activate: bool = True) -> None:
        name = self.active.get(origin)
        if name is not None:
            self.say("suspend", name, self.random.random() < 0.3, self.random.random() < 0.5)
        self.message(f"create_snap {dev_id} {origin}")
        if name is not None:
            self.say("resume", name)
        if activate:
            self.activate(dev_id)

    def delete(self, dev_id: int) -> None:
        if dev_id in self.active:
            self.deactivate(dev_id)
        self.message(f"delete {dev_id}")

    # -- I/O

    def write(self, dev_id: int, block: int, *, at: int = 0, length: int | None = None, flush: bool = True) -> None:
        """A whole block, or `length` bytes from byte `at` of it."""
        size = self.variant.block_bytes
        seed = self.random.randrange(1, 1 << 30)
        self.say("write_pattern", self.active[dev_id], block * size + at, size if length is None else length, seed)
        if flush:
            self.flush(dev_id)

    def fill(self, dev_id: int, blocks: Iterable[int]) -> None:
        """A page into each, most without a flush, so that a kernel's timer may commit between: for new blocks, where
        nothing shows a number of a metadata block."""
        for index, block in enumerate(blocks):
            self.write(dev_id, block, length=PAGE, flush=index % _FLUSH_EVERY == _FLUSH_EVERY - 1)
        self.flush(dev_id)

    def read(self, dev_id: int, block: int, nr: int = 1) -> None:
        size = self.variant.block_bytes
        self.say("read_digest", self.active[dev_id], block * size, nr * size)

    def flush(self, dev_id: int) -> None:
        self.say("flush", self.active[dev_id])

    def discard(self, dev_id: int, begin: int, end: int, *, after: int = 0, before: int = 0) -> None:
        """Blocks [begin, end); `after` and `before`: bytes left out at its ends."""
        size = self.variant.block_bytes
        length = (end - begin) * size - after - before
        if length > 0:
            self.say("discard", self.active[dev_id], begin * size + after, length)
            self.flush(dev_id)

    def ragged_discard(self, dev_id: int, begin: int, end: int) -> None:
        cut = (0, 0, PAGE, self.variant.block_bytes - PAGE)
        self.discard(dev_id, begin, end, after=self.random.choice(cut), before=self.random.choice(cut))
