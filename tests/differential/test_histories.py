"""A few histories of every variant: engine, kernel and model answer the same. `make differential` does more."""

from collections.abc import Iterator

import pytest

from kernel_backend.runner import Guest
from kernel_backend.uml import KERNELS

from . import history
from .pair import IMAGES, KernelSide, UserspaceSide, compare, report, userspace_side
from .variants import VARIANTS

CASES = [(name, seed) for name, variant in VARIANTS.items() for seed in ((1,) if variant.shape else (1, 2))]


@pytest.fixture(scope="module", params=sorted(KERNELS))
def kernel_side(request: pytest.FixtureRequest) -> Iterator[KernelSide]:
    kernel = KERNELS[request.param]
    if kernel.missing is not None:
        (pytest.skip if kernel.moves_on else pytest.fail)(kernel.missing)
    with Guest(kernel, images=IMAGES, memory_mb=256) as guest:
        yield KernelSide(guest)


@pytest.fixture(scope="module")
def ours() -> Iterator[UserspaceSide]:
    with userspace_side() as side:
        yield side


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_a_history_is_answered_as_by_the_kernel_and_leaves_the_same_metadata(
    name: str, seed: int, kernel_side: KernelSide, ours: UserspaceSide
) -> None:
    variant = VARIANTS[name]
    operations = history.make(variant, seed, kernel=kernel_side.guest.kernel.name)
    result = compare(variant, operations, ours, kernel_side)
    assert not result.differences, report(result, seed, ours, kernel_side)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_seed_makes_the_same_history_again(name: str) -> None:
    assert history.make(VARIANTS[name], 7) == history.make(VARIANTS[name], 7)
