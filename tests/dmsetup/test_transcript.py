"""The drop-in answers what dmsetup answered over the kernel, command for command."""

import re
from collections.abc import Sequence

import pytest
import trio.testing

from tests.blockdevs.loops import Loops
from tests.dm.fake_backend import FakeBackend
from tests.dmsetup.transcript import GOLDEN, mask_counts, mask_held_root, replay
from thinfs.dm.backend import OpenDevice
from thinfs.userspace.devices import open_device_mapper


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


@pytest.mark.trio
async def test_the_transcript_is_answered_word_for_word_by_the_engine(
    autojump_clock: trio.testing.MockClock, loops: Loops
) -> None:
    """On loop devices of the same sizes; their numbers are put in the transcript's place."""
    numbers = [loops.make(name, size).number for name, size in (("data", 64 << 20), ("metadata", 4 << 20))]
    text = re.sub(r"(/dev/loop|\b7:)([01])\b", lambda found: f"{found[1]}{numbers[int(found[2])]}", GOLDEN.read_text())
    more = {
        "snapshot-merge": "1.5.0",
        "snapshot-origin": "1.9.0",
        "snapshot": "1.16.0",
        "mirror": "1.14.0",
        "zero": "1.1.0",
    }  # ours too
    pool = "thin-pool        v1.22.0\n"
    text = text.replace(pool, "".join(f"{name:<16} v{version}\n" for name, version in more.items()) + pool)
    opened: dict[str, OpenDevice] = {}
    async with open_device_mapper(major=254) as mapper:

        async def step(words: Sequence[str]) -> None:
            match words:
                case ["open", name]:
                    opened[name] = await mapper.open(name)
                case ["close", name]:
                    await opened.pop(name).aclose()
                case ["write", name, offset, length]:
                    device = await mapper.open(name)
                    await device.write(int(offset), b"x" * int(length))
                    await device.aclose()

        await replay(mapper, text, step, mask_held_root)
