"""Pools to be read: those of some seeds and one that Docker made."""

from pathlib import Path

import pytest

from tests.tools.pools import random_pool
from thinfs.cli.demo_docker import carried_pool, unpack

SEEDS = tuple(range(6))


@pytest.fixture(scope="session")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Never to be changed. Those with an odd seed hold a metadata snapshot."""
    directory = tmp_path_factory.mktemp("pools")
    made = {
        f"seed {seed}": random_pool(directory / f"seed-{seed}", seed, metadata_snapshot=seed % 2 == 1) for seed in SEEDS
    }
    carried = carried_pool()
    assert carried is not None
    unpack(carried, directory / "docker")
    return {**made, "docker": directory / "docker/devicemapper/devicemapper/metadata"}


@pytest.fixture(params=[*(f"seed {seed}" for seed in SEEDS), "docker"])
def pool(pools: dict[str, Path], request: pytest.FixtureRequest) -> Path:
    return pools[request.param]


@pytest.fixture
def held(pools: dict[str, Path]) -> Path:
    """One with a metadata snapshot."""
    return pools["seed 1"]
