"""Two of the kills of `make kills`."""

import shutil
from pathlib import Path

import pytest

from tests.clients.conftest import need, need_block_devices
from tests.kills.campaign import Campaign


def test_two_kills_under_load_lose_nothing_and_leave_nobody_waiting(tmp_path: Path) -> None:
    need_block_devices()
    need("mkfs.ext4", "e2fsck", "fio")
    campaign = Campaign(tmp_path, seed=2)
    try:
        campaign.set_up()
        for _ in range(2):
            campaign.kill()
    finally:
        campaign.end()
    assert campaign.nr_checked > 20
    shutil.rmtree(tmp_path)


def test_a_lost_block_would_be_seen(tmp_path: Path) -> None:
    """The check itself: it must not hold what nobody wrote."""
    need_block_devices()
    need("mkfs.ext4", "e2fsck", "fio")
    campaign = Campaign(tmp_path, seed=3)
    try:
        campaign.set_up()
        campaign.safe.blocks[5] = b"never written"
        with pytest.raises(AssertionError, match=r"block 5 of the raw volume|Lost"):
            campaign.server.kill()
            campaign._machine_lives([])
            campaign._check()
    finally:
        campaign.end()
