"""Histories with a shape: what random operations seldom or never come to, by the hundreds and in changing orders.

Trees that are filled, punched, emptied and filled again; more thins than a leaf holds; a data device so small that
the allocator comes round; low water; waits for space that end; reloads; metadata that grows; disks that fail.
Each shape is a function of a Script; variants name them. The seed chooses orders, strides and places.
"""

from collections.abc import Callable, Iterator
from typing import Final

from kernel_backend.batch import Operation

from .disks import DISK
from .script import Script
from .variants import PAGE, Variant

Shape = Callable[[Script], None]


def make(variant: Variant, seed: int, kernel: str = "6.1") -> list[Operation]:
    script = Script(variant, seed, kernel)
    script.create_pool()
    _SHAPES[variant.shape](script)
    script.status()
    return script.operations


def _ordered(script: Script, keys: list[int]) -> list[int]:
    """Ascending, descending, from both ends, shuffled, or in runs from shuffled places."""
    random = script.random
    match random.randrange(5):
        case 0:
            return keys
        case 1:
            return keys[::-1]
        case 2:
            return [keys[i // 2] if i % 2 == 0 else keys[-1 - i // 2] for i in range(len(keys))]
        case 3:
            return random.sample(keys, len(keys))
    size = random.randrange(5, 60)
    begins = list(range(0, len(keys), size))
    random.shuffle(begins)
    return [key for begin in begins for key in keys[begin : begin + size]]


def _keys(script: Script, nr: int) -> list[int]:
    """Distinct virtual blocks, ascending, some strides apart."""
    stride = script.random.choice((1, 1, 2, 3, 977))
    begin = script.random.randrange(0, 1000)
    return [begin + i * stride for i in range(nr)]


def _evenly(script: Script) -> list[int]:
    """All leaves filled at the same pace, until one overflows between two that are full: two become three."""
    half, nr_leaves = 126, script.random.randrange(3, 6)
    begin = script.random.randrange(1000)
    keys = [begin + 4 * i for i in range(half * nr_leaves)]
    script.fill(0, keys)
    between = [keys[leaf * half + i] + 1 + script.random.randrange(3) for i in range(half) for leaf in range(nr_leaves)]
    script.fill(0, between)
    more = [key for key in range(begin, keys[-1]) if key not in {*keys, *between}]
    script.fill(0, script.random.sample(more, min(len(more), 20)))
    return sorted({*keys, *between})


def _punch(script: Script, dev_id: int, keys: list[int]) -> list[int]:
    """Discard every second key or so, or runs of them; those that went."""
    random = script.random
    match random.randrange(3):
        case 0:
            every = random.choice((2, 2, 3, 5))
            gone = _ordered(script, keys[random.randrange(every) :: every])
        case 1:
            gone = random.sample(keys, len(keys) * random.choice((1, 2, 3)) // 4)
        case _:
            at, size = random.randrange(len(keys) // 2), random.randrange(len(keys) // 4, len(keys) // 2)
            script.ragged_discard(dev_id, keys[at], keys[at + size])
            script.status(dev_id)
            return keys[at + 1 : at + size - 1]
    for key in gone:
        script.discard(dev_id, key, key + 1)
    script.status(dev_id)
    return gone


def _look(script: Script, dev_id: int, keys: list[int], nr: int = 6) -> None:
    for key in script.random.sample(keys, min(nr, len(keys))):
        script.read(dev_id, key)


def _comb(script: Script) -> None:
    """One volume: fill, punch, refill what went, delete."""
    random = script.random
    while not script.full:
        script.thin(0)
        if random.random() < 0.25:
            keys = _evenly(script)
        else:
            keys = _keys(script, random.randrange(256, 700))
            script.fill(0, _ordered(script, keys))
        script.status(0)
        for _ in range(random.randrange(1, 4)):
            gone = _punch(script, 0, keys)
            _look(script, 0, keys)
            script.status()
            if script.full:
                break
            if random.random() < 0.6:
                script.fill(0, _ordered(script, gone)[: random.randrange(10, 400)])
        if random.random() < 0.4:
            script.reopen()
            script.activate(0)
        _look(script, 0, keys)
        script.delete(0)
        script.status()


def _comb_snapshots(script: Script) -> None:
    """Trees whose leaves are shared: snapshots before and between; either side is punched and filled."""
    random = script.random
    next_id, keys = 1, _keys(script, random.randrange(256, 520))
    script.thin(0)
    script.fill(0, _ordered(script, keys))
    while not script.full:
        if len(script.active) < 5:
            origin = random.choice(sorted(script.active))
            script.snap(next_id, origin)
            next_id += 1
        dev_id = random.choice(sorted(script.active))
        match random.randrange(5):
            case 0 | 1:
                _punch(script, dev_id, keys)
            case 2:
                for key in random.sample(keys, random.randrange(1, 60)):
                    script.write(dev_id, key, at=random.randrange(16) * PAGE, length=PAGE)
            case 3:
                more = [key + 1 for key in keys[-1:]] + [keys[-1] + 2 + i for i in range(random.randrange(130))]
                for key in _ordered(script, more):
                    script.write(dev_id, key, length=PAGE)
            case _:
                if len(script.active) > 2:
                    script.delete(dev_id)
                    script.status()
                    continue
        _look(script, dev_id, keys)
        script.status(dev_id)
        script.status()
    for dev_id in sorted(script.active):
        script.delete(dev_id)
        script.status()


def _many_thins(script: Script) -> None:
    """The upper trees: hundreds of thins, deleted in some order, again; a metadata snapshot now and then."""
    random = script.random
    held = False
    while not script.full:
        ids = _ordered(script, list(range(1, random.randrange(140, 420))))
        made: list[int] = []
        for dev_id in ids:
            if made and random.random() < 0.2:
                script.snap(dev_id, random.choice(made), activate=False)
            else:
                script.message(f"create_thin {dev_id}")
            made.append(dev_id)
            if random.random() < 0.05:
                script.activate(dev_id)
                for block in random.sample(range(300), random.randrange(1, 8)):
                    script.write(dev_id, block, length=PAGE)
                script.deactivate(dev_id)
        script.status()
        if random.random() < 0.6:
            script.message("reserve_metadata_snap")
            held = True
            script.status()
        gone = made[:: random.choice((1, 2, 2, 3))]
        for dev_id in _ordered(script, gone):
            script.message(f"delete {dev_id}")
        script.status()
        if held:
            if random.random() < 0.3:
                script.message("create_thin 5000")
                script.message("delete 5000")
                script.status()
            script.message("release_metadata_snap")
            held = False
            script.status()
        left = [dev_id for dev_id in made if dev_id not in set(gone)]
        for dev_id in random.sample(left, min(3, len(left))):
            script.activate(dev_id)
            script.status(dev_id)
            script.read(dev_id, random.randrange(300))
            script.deactivate(dev_id)
        if random.random() < 0.5:
            script.reopen()
        for dev_id in _ordered(script, left):
            script.message(f"delete {dev_id}")
        script.status()


def _refill(script: Script, dev_id: int, next_id: int) -> bool:
    """Full to the last block, then holes in a run, a snapshot of what is left, and the holes filled by the very blocks
    that they freed: consecutive, and half of them shared. Did it come to the snapshot?"""
    random, room = script.random, script.variant.thin_blocks
    for other in sorted(script.active):
        mapped = set(script.model.mapped_blocks(other))
        for block in range(room):
            if script.nr_free and block not in mapped:
                script.write(other, block)
    begin = random.randrange(room - 6)
    end = begin + random.randrange(3, 7)
    holes = random.sample(range(begin, end), random.randrange(1, 3))
    for block in sorted(holes):
        script.discard(dev_id, block, block + 1)
    if script.nr_free < len(holes):
        return False
    script.snap(next_id, dev_id)
    for block in sorted(holes):
        script.write(dev_id, block)
    script.discard(dev_id, begin, end)
    for other in sorted(script.active):
        script.read(other, begin, end - begin)
    return True


def _wrap(script: Script) -> None:
    """The allocator comes round on a tiny device: runs half shared, ragged discards of them, all looked at."""
    random, next_id = script.random, 1
    script.thin(0)
    room = script.variant.thin_blocks
    while not script.full:
        dev_id = random.choice(sorted(script.active))
        if script.nr_free < 12 and len(script.active) <= 4 and random.random() < 0.5:
            next_id += _refill(script, dev_id, next_id)
            script.status()
            continue
        if script.nr_free < 8 or len(script.active) > 4:
            if len(script.active) > 1:
                dev_id = random.choice(sorted(script.active))
                script.delete(dev_id)
            else:
                script.ragged_discard(dev_id, 0, room)
            script.status()
            continue
        match random.randrange(8):
            case 0 | 1:
                begin = random.randrange(room - 6)
                for block in range(begin, begin + random.randrange(1, 7)):
                    script.write(dev_id, block)
            case 2:
                block, nr = random.randrange(room - 4), random.randrange(1, 4)
                at, size = random.randrange(16) * PAGE, script.variant.block_bytes
                script.write(dev_id, block, at=at, length=nr * size - random.randrange(1, 9) * PAGE)
            case 3:
                script.snap(next_id, dev_id)
                next_id += 1
            case 4:
                block = random.randrange(room - 1)  # a hole in a run, which is then filled by what comes next
                script.discard(dev_id, block, block + 1)
                if random.random() < 0.7:
                    script.snap(next_id, dev_id)
                    next_id += 1
                    script.write(dev_id, block)
            case 5 | 6:
                begin = random.randrange(room - 2)
                script.ragged_discard(dev_id, begin, min(room, begin + random.randrange(1, 12)))
                for other in sorted(script.active):
                    script.read(other, max(0, begin - 1), min(14, room - max(0, begin - 1)))
            case _:
                for other in sorted(script.active):
                    script.read(other, 0, room)
                script.status(dev_id)
        if random.random() < 0.1:
            script.status()


def _low_water(script: Script) -> None:
    """Across the mark and back, one block at a time, the event number after each."""
    random = script.random
    script.thin(0)
    next_id, room = 1, script.variant.thin_blocks
    while not script.full:
        match random.randrange(6):
            case 0 | 1 | 2:
                for block in random.sample(range(room), random.randrange(1, 8)):
                    if script.nr_free > 1:
                        script.write(0, block, length=PAGE)
                        script.event_nr()
            case 3:
                begin = random.randrange(room)
                script.discard(0, begin, min(room, begin + random.randrange(1, 30)))
                script.event_nr()
            case 4:
                if random.random() < 0.5:
                    script.low_water = random.choice(
                        (0, 1, 5, script.nr_free, script.nr_free + 1, script.nr_free - 1, 60)
                    )
                    script.low_water = max(0, script.low_water)
                    script.reload_pool()
                else:
                    script.say("suspend", "pool", random.random() < 0.5, False)
                    script.say("resume", "pool")
                script.event_nr()
            case _:
                script.snap(next_id, 0, activate=False)
                script.write(0, random.randrange(room))
                script.event_nr()
                script.message(f"delete {next_id}")
                next_id += 1
        script.status()


def _waiting(script: Script) -> None:
    """Full: who waits for space is told ENOSPC after the timeout; space comes back in different ways.

    The first flush waits as a write of block 0 would: block 0 is therefore mapped from the start.
    """
    random = script.random
    script.thin(0)
    script.write(0, 0)
    room, nr_waits = script.variant.thin_blocks, 0
    while not script.full and nr_waits < 3:
        for block in random.sample(range(room), room):
            if script.nr_free == 0:
                break
            script.write(0, block, length=PAGE)
        script.status()
        script.event_nr()
        unmapped = [block for block in range(room) if block not in script.model.mapped_blocks(0)]
        if "error_if_no_space" not in script.features:
            nr_waits += 1
        script.write(0, random.choice(unmapped))
        script.event_nr()
        script.status()
        if random.random() < 0.5:
            script.write(0, random.choice(unmapped), length=PAGE)  # at once by now
            script.read(0, random.choice(unmapped))
        if random.random() < 0.3:
            script.say("suspend", "pool", False, False)
            script.say("resume", "pool")
            script.event_nr()
            script.status()
        match random.randrange(3):
            case 0:
                script.discard(0, 1, random.randrange(3, room))
            case 1:
                script.nr_blocks += random.randrange(1, 6)
                script.reload_pool()
            case _:
                script.features = random.choice(("1 no_discard_passdown", "2 error_if_no_space no_discard_passdown"))
                script.discard(0, 1, random.randrange(3, room))
                script.reload_pool()
        script.event_nr()
        script.status()


_FEATURES: Final = (
    "0", "1 skip_block_zeroing", "1 ignore_discard", "1 no_discard_passdown", "1 error_if_no_space",
    "2 skip_block_zeroing no_discard_passdown", "3 skip_block_zeroing ignore_discard error_if_no_space", "1 read_only",
)  # fmt: skip

_GROWS: Final = _FEATURES[:2] + _FEATURES[3:6]


def _reloads(script: Script) -> None:
    """Features that change under the thins, and thins that change their size; with noflush and without."""
    random = script.random
    script.thin(0)
    script.thin(1)
    script.snap(2, 0)
    sizes = dict.fromkeys((0, 1, 2), script.variant.thin_blocks)
    grows = True  # read-only, a kernel's grows in core alone, and once more later (README); a refused table stays out
    while not script.full:
        dev_id = random.choice(sorted(script.active))
        size = sizes[dev_id]
        match random.randrange(7):
            case 0:
                script.features = random.choice(_FEATURES)
                script.low_water = random.choice((0, 1, 100, 1 << 40))
                if random.random() < 0.3 and script.features in _GROWS and grows:
                    script.nr_blocks += random.randrange(20)
                grows = script.features in _GROWS
                script.reload_pool(noflush=random.random() < 0.3)
                script.say("table", "pool")
                script.event_nr()
            case 1:
                sizes[dev_id] = size = random.choice((1, 7, 64, 65, 300))
                name = script.active[dev_id]
                script.say("load", name, script.table(dev_id, size))
                script.say("suspend", name, random.random() < 0.3, random.random() < 0.5)
                script.say("resume", name)
                script.say("close", name)
                script.say("size_bytes", name)
                script.status(dev_id)
            case 2 | 3:
                for block in random.sample(range(size), min(size, random.randrange(1, 5))):
                    script.write(dev_id, block, at=random.randrange(16) * PAGE, length=PAGE)
            case 4:
                begin = random.randrange(size)
                script.ragged_discard(dev_id, begin, min(size, begin + random.randrange(1, 20)))
            case 5:
                script.read(dev_id, 0, min(size, 16))
            case _:
                for other in ("pool", script.active[dev_id]):
                    script.say("suspend", other, random.random() < 0.5, random.random() < 0.5)
                    script.say("resume", other)
                script.status(dev_id)
        script.status()


def _growing(script: Script) -> None:
    """Metadata that becomes full and grows, by its own allocation, again and again."""
    random, size = script.random, script.variant.metadata_bytes
    script.thin(0)
    written, next_id = 0, 1
    while not script.full:
        for block in range(written, written + random.randrange(20, 160)):
            script.write(0, block * random.choice((1, 1, 1, 3)), length=PAGE)
        written += 160
        script.status()
        script.event_nr()
        if random.random() < 0.5:
            script.snap(next_id, 0, activate=False)
            next_id += 1
        size += random.choice((4096, 32 << 10, 32 << 10, 128 << 10, 1 << 20, 4 << 20))
        script.say(DISK, "meta", size)
        script.status()
        if random.random() < 0.3:
            script.nr_blocks = min(script.nr_blocks + random.randrange(1, 3000), script.variant.data_blocks + 4096)
            script.reload_pool()
        else:
            script.say("suspend", "pool", False, False)
            script.say("resume", "pool")
        script.status()
        script.event_nr()
        if random.random() < 0.3:
            script.ragged_discard(0, 0, written // random.choice((1, 2, 4)) + 2)
        if random.random() < 0.2:
            script.reopen()
            script.activate(0)


def _faults(script: Script) -> None:
    """A disk fails for a while; what is lost, refused and left is compared. Then the pool is made again."""
    random = script.random
    next_id = 1
    script.thin(0)
    while not script.full:
        for block in random.sample(range(40), random.randrange(1, 6)):
            script.write(0, block)
        if random.random() < 0.4:
            script.snap(next_id, 0, activate=False)
            next_id += 1
        disk, state = random.choice(("meta", "data", "data")), random.choice(("fail", "fail-writes"))
        script.status()
        script.say(DISK, disk, state)
        for _ in range(random.randrange(1, 4)):
            match random.randrange(4):
                case 0:
                    script.write(0, random.randrange(60))
                case 1:
                    script.write(0, random.randrange(60), length=PAGE)
                case 2:
                    if disk == "data" and state == "fail":
                        script.read(0, random.randrange(60))
                case _:
                    script.discard(0, random.randrange(20), random.randrange(21, 40))
            script.event_nr()
        if disk == "meta" and random.random() < 0.5:
            script.message(f"create_thin {next_id}")
            next_id += 1
        script.say("status", "pool", True)
        script.say(DISK, disk, "work")
        script.status()
        script.event_nr()
        script.say("status", "t0")
        if random.random() < 0.7:
            script.reopen()
            script.status()
            script.activate(0)
            script.read(0, 0, 16)


_SHAPES: Final[dict[str, Shape]] = {
    "comb": _comb, "comb_snapshots": _comb_snapshots, "many_thins": _many_thins, "wrap": _wrap,
    "low_water": _low_water, "waiting": _waiting, "reloads": _reloads, "growing": _growing, "faults": _faults,
}  # fmt: skip


def names() -> Iterator[str]:
    yield from _SHAPES
