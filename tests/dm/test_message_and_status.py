"""The text of messages and status lines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinfs.dm.message import (
    CreateSnap,
    CreateThin,
    Delete,
    PoolMessage,
    ReleaseMetadataSnap,
    ReserveMetadataSnap,
    SetTransactionId,
    parse_pool_message,
    split_message,
)
from thinfs.dm.status import PoolStatus, ThinStatus
from thinfs.errors import InvalidArgument

ids = st.integers(0, (1 << 24) - 1)
u64 = st.integers(0, (1 << 64) - 1)
messages = st.one_of(
    st.builds(CreateThin, ids),
    st.builds(CreateSnap, ids, ids),
    st.builds(Delete, ids),
    st.builds(SetTransactionId, u64, u64),
    st.just(ReserveMetadataSnap()),
    st.just(ReleaseMetadataSnap()),
)


@given(messages)
def test_a_printed_message_parses_to_itself(message: PoolMessage) -> None:
    assert parse_pool_message(split_message(str(message))) == message


def test_message_names_are_case_insensitive_and_white_space_collapses() -> None:
    assert parse_pool_message(split_message("  CREATE_Snap   5\t4 ")) == CreateSnap(5, 4)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("bogus", "Unrecognised thin pool target message received: bogus"),
        ("create_thin", "0 arguments instead of 1"),
        ("create_thin 1 2", "2 arguments instead of 1"),
        ("create_thin x", "invalid device id: x"),
        ("create_thin 16777216", "invalid device id: 16777216"),
        ("set_transaction_id 0 0x1", "invalid transaction id: 0x1"),
        ("reserve_metadata_snap 1", "1 arguments instead of 0"),
        ("", "empty message"),
    ],
)
def test_a_malformed_message_is_refused_with_the_value_named(text: str, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        parse_pool_message(split_message(text))


@pytest.mark.parametrize(
    "line",
    [
        "0 419/4096 0/16384 - rw discard_passdown queue_if_no_space - 1024 ",
        "0 116/1024 1/32768 9 rw discard_passdown queue_if_no_space - 256 ",
        "0 117/1024 1024/1024 - out_of_data_space discard_passdown error_if_no_space - 256 ",
        "0 114/1024 5/1024 - ro discard_passdown queue_if_no_space needs_check 256 ",
    ],
)
def test_a_kernels_pool_status_prints_back_to_the_letter(line: str) -> None:
    status = PoolStatus.parse(line)
    assert status is not None
    assert str(status) == line


@pytest.mark.parametrize("line", ["512 1407", "0 -"])
def test_a_kernels_thin_status_prints_back_to_the_letter(line: str) -> None:
    assert str(ThinStatus.parse(line)) == line


def test_fail_and_error_have_no_values() -> None:
    assert PoolStatus.parse("Fail") is None
    assert PoolStatus.parse("Error") is None
    assert ThinStatus.parse("Fail") is None


def test_what_is_no_status_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not a thin-pool status"):
        PoolStatus.parse("0 1/2 nonsense")
