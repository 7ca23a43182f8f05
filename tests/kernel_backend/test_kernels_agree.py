"""The two kernels held against each other: the same operations, the same answers, the same metadata.

What the judge of the userspace engine does must itself give one verdict. Every operation is followed by a
commit (status), so that the clock has no say.
"""

import random

import pytest

from kernel_backend.batch import Operation
from kernel_backend.differential import differences
from kernel_backend.runner import Guest

BLOCK = 64 * 1024
NR_IDS = 12
NR_BLOCKS = 64


def operations_of(seed: int, count: int, metadata: str, data: str) -> list[Operation]:
    """A random life of a pool; thin N is the device tN."""
    choice = random.Random(seed)
    active: list[int] = []
    operations: list[Operation] = [("create", "p", f"0 131072 thin-pool {metadata} {data} 128 0")]
    for _ in range(count):
        kind = choice.choices(["new", "delete", "write", "discard", "read"], [4, 2, 8, 3, 3])[0]
        if kind == "new" or not active:
            new, origin = choice.randrange(NR_IDS), choice.randrange(NR_IDS)
            message = choice.choice([f"create_thin {new}", f"create_snap {new} {origin}"])
            operations += [
                ("message", "p", message),
                ("create", f"t{new}", f"0 131072 thin /dev/mapper/p {new}"),
            ]
            active = sorted({*active, new})
        elif kind == "delete":
            gone = choice.choice(active)
            active.remove(gone)
            operations += [("remove", f"t{gone}"), ("message", "p", f"delete {gone}")]
        else:
            name, offset = f"t{choice.choice(active)}", choice.randrange(NR_BLOCKS) * BLOCK
            if kind == "write":
                length = choice.choice([4096, BLOCK])
                operations.append(("write_pattern", name, offset, length, choice.randrange(99)))
            elif kind == "discard":
                operations.append(("discard", name, offset, choice.choice([1, 2, 5]) * BLOCK))
            else:
                operations.append(("read_digest", name, offset, BLOCK))
        operations.append(("status", "p"))
    for number in active:
        operations += [("status", f"t{number}"), ("remove", f"t{number}")]
    return [*operations, ("remove", "p")]


@pytest.mark.parametrize("seed", range(3))
def test_both_kernels_answer_a_pools_life_alike(guest6_1: Guest, guest6_12: Guest, seed: int) -> None:
    outcomes, dumps = [], []
    for guest in (guest6_1, guest6_12):
        operations = operations_of(seed, 60, guest.images[0].device, guest.images[1].device)
        outcomes.append(guest.batch(operations))
        guest.reset()
        assert guest.thin_check(guest.images[0]).returncode == 0
        dumps.append(guest.thin_dump(guest.images[0]))
    assert differences(operations, outcomes[0], outcomes[1]) == []
    assert dumps[0] == dumps[1]
    assert "<range_mapping" in dumps[0] or "<single_mapping" in dumps[0]
