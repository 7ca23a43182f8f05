"""The drop-in answers what dmsetup answered over the kernel, command for command."""

from collections.abc import Sequence

import pytest
import trio.testing

from tests.control.fake_backend import FakeBackend
from tests.control.transcript import GOLDEN, mask_counts, replay
from thinfs.dm.backend import OpenDevice


@pytest.mark.trio
async def test_the_transcript_is_answered_word_for_word(autojump_clock: trio.testing.MockClock) -> None:
    backend = FakeBackend()
    opened: dict[str, OpenDevice] = {}

    async def step(words: Sequence[str]) -> None:
        match words:
            case ["open", name]:
                opened[name] = await backend.open(name)
            case ["close", name]:
                await opened.pop(name).aclose()
            case ["write", *_]:
                pass  # what the fake has mapped is invented

    await replay(backend, GOLDEN.read_text(), step, mask_counts)
    assert not opened
