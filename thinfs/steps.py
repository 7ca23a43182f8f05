"""How the synchronous engine lets a caller run its waiting I/O elsewhere, without knowing an event loop.

A long operation is a generator. It yields a callable when the next thing is blocking I/O (a flush, a copy):
the driver runs it, inline or in a thread, and resumes the generator with the outcome. It yields None
between slices of long computation: a driver may serve others there. The engine's state is consistent
at every yield, and only one Steps of a pool runs at a time; reads of the mappings may go on meanwhile.
"""

from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")

BlockingCall: TypeAlias = Callable[[], None]
Steps: TypeAlias = Generator[BlockingCall | None, None, T]


def drive(steps: Steps[T]) -> T:
    """Run an operation to its end on the spot: what tests, tools and the crash simulation do."""
    error: Exception | None = None
    while True:
        try:
            call = next(steps) if error is None else steps.throw(error)
        except StopIteration as stop:
            result: T = stop.value
            return result
        error = None
        if call is not None:
            try:
                call()
            except Exception as failure:
                error = failure
