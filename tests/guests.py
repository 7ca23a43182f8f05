"""Guests for tests, as fixtures: one a kernel and a session, handed out as empty as it booted.

To use elsewhere: `pytest_plugins = ["tests.guests"]` in tests/conftest.py, or import the fixtures' names.
An absent kernel skips with the line that says how to get it.
"""

from collections.abc import Iterator

import pytest

from kernel_backend.runner import Guest
from kernel_backend.uml import KERNEL_6_1, KERNEL_6_12, KERNEL_7_2, KERNELS, GuestKernel


def booted(kernel: GuestKernel) -> Iterator[Guest]:
    if kernel.missing is not None:
        pytest.skip(kernel.missing)
    try:
        guest = Guest(kernel)
    except FileNotFoundError as error:  # no compiler for what this processor needs
        pytest.skip(str(error))
    with guest:
        yield guest


def fresh(guest: Guest) -> Iterator[Guest]:
    """No devices, zeroed images, before the test; no devices after it, even when it failed."""
    assert guest.running, guest.describe()
    for image in guest.images:
        image.blank()
    guest.kernel_log()
    yield guest
    if guest.running:
        guest.reset()


@pytest.fixture(scope="session")
def booted_6_1() -> Iterator[Guest]:
    yield from booted(KERNEL_6_1)


@pytest.fixture(scope="session")
def booted_6_12() -> Iterator[Guest]:
    yield from booted(KERNEL_6_12)


@pytest.fixture(scope="session")
def booted_7_2() -> Iterator[Guest]:
    yield from booted(KERNEL_7_2)


@pytest.fixture
def guest6_1(booted_6_1: Guest) -> Iterator[Guest]:
    yield from fresh(booted_6_1)


@pytest.fixture
def guest6_12(booted_6_12: Guest) -> Iterator[Guest]:
    yield from fresh(booted_6_12)


@pytest.fixture
def guest7_2(booted_7_2: Guest) -> Iterator[Guest]:
    yield from fresh(booted_7_2)


@pytest.fixture(params=sorted(KERNELS))
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """Every kernel in turn."""
    session_guest = request.getfixturevalue(f"booted_{request.param.replace('.', '_')}")
    yield from fresh(session_guest)
