"""set_transaction_id, a number that programs keep in the pool. Source: docs/reference/behaviour.md, 3."""

import pytest

from thinfs.errors import InvalidArgument

from .workbench import PoolOnBench

TOP = (1 << 64) - 1


async def test_a_new_pool_has_0(pool: PoolOnBench) -> None:
    assert (await pool.status()).transaction_id == 0


async def test_it_is_set_when_the_current_one_is_named(pool: PoolOnBench) -> None:
    await pool.message("set_transaction_id 0 7")
    assert (await pool.status()).transaction_id == 7


async def test_it_survives_a_reopening(pool: PoolOnBench) -> None:
    await pool.message(f"set_transaction_id 0 {TOP}")
    await pool.reopen()
    assert (await pool.status()).transaction_id == TOP


async def test_another_current_one_is_refused_and_changes_nothing(pool: PoolOnBench) -> None:
    await pool.message("set_transaction_id 0 7")
    with pytest.raises(InvalidArgument):
        await pool.message("set_transaction_id 0 8")
    assert (await pool.status()).transaction_id == 7


async def test_it_may_decrease_and_stay(pool: PoolOnBench) -> None:
    for current, new in ((0, 9), (9, 9), (9, 3), (3, 0)):
        await pool.message(f"set_transaction_id {current} {new}")
        assert (await pool.status()).transaction_id == new


@pytest.mark.parametrize("words", ["", "0", "0 1 2", "x 1", "0 x", "-1 1", "0 -1", "0x0 1", f"0 {TOP + 1}", "0 1x"])
async def test_malformed_ones_are_invalid(pool: PoolOnBench, words: str) -> None:
    with pytest.raises(InvalidArgument):
        await pool.message(f"set_transaction_id {words}".rstrip())
    assert (await pool.status()).transaction_id == 0
