"""The text of tables: what device-mapper accepts, what it refuses, and that printing and parsing agree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinfs.dm.table import (
    Feature,
    PoolArguments,
    TargetLine,
    ThinArguments,
    format_pool_params,
    format_thin_params,
    parse_decimal,
    parse_table,
    quote_word,
    split_words,
)
from thinfs.errors import InvalidArgument

words = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=20)


@given(st.lists(words))
def test_quoted_words_are_read_back_as_they_were(sample: list[str]) -> None:
    assert split_words(" ".join(map(quote_word, sample))) == sample


@given(st.lists(st.tuples(st.integers(1, 1 << 40), words, st.lists(words, max_size=5)), min_size=1, max_size=4))
def test_a_printed_table_parses_to_itself(rows: list[tuple[int, str, list[str]]]) -> None:
    lines, start = [], 0
    for length, target, params in rows:
        lines.append(TargetLine(start, length, target.replace("\\", "_").replace(" ", "_") or "_", tuple(params)))
        start += length
    lines = [line for line in lines if not any(char.isspace() for char in line.target)]
    if len(lines) == len(rows):
        assert parse_table("\n".join(map(str, lines))) == tuple(lines)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("007", 7),
        ("+5", 5),
        ("0x10", None),
        ("-1", None),
        ("1k", None),
        ("", None),
        ("18446744073709551616", None),
    ],
)
def test_numbers_are_decimal_only(text: str, value: int | None) -> None:
    assert parse_decimal(text) == value


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ("", "empty"),
        ("0 8", "expected start, length and target"),
        ("x 8 error", "x: not a start sector"),
        ("0 -8 error", "-8: not a length"),
        ("8 8 error", "Gap in table"),
        ("0 8 error\n16 8 error", "Gap in table"),
        ("0 0 error", "zero-length"),
    ],
)
def test_a_malformed_table_is_refused_with_the_value_named(table: str, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        parse_table(table)


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ("/m /d 128", "Invalid argument count: 3"),
        ("/d /d 128 0", "Error setting metadata or data device"),
        ("/m /d 128 0 x", "Invalid number of pool feature arguments: x"),
        ("/m /d 128 0 2 skip_block_zeroing", "Invalid number of pool feature arguments: 2"),
        (
            "/m /d 128 0 5 skip_block_zeroing ignore_discard no_discard_passdown read_only error_if_no_space",
            "Invalid number of pool feature arguments: 5",
        ),
        ("/m /d 128 0 1 bogus", "Unrecognised pool feature requested: bogus"),
    ],
)
def test_pool_arguments_are_refused_before_a_device_is_opened(params: str, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        PoolArguments.parse(params.split())


@pytest.mark.parametrize("size", ["0", "64", "127", "129", "192", "abc", "-128", "2097280", "0x80"])
def test_a_block_size_that_is_no_multiple_of_64_kib_up_to_1_gib_is_refused(size: str) -> None:
    with pytest.raises(InvalidArgument, match=f"Invalid block size: {size}"):
        PoolArguments.parse(["/m", "/d", size, "0"]).block_size_sectors()


@pytest.mark.parametrize("mark", ["abc", "-1", str(1 << 64)])
def test_a_low_water_mark_that_is_no_unsigned_64_bit_decimal_is_refused(mark: str) -> None:
    with pytest.raises(InvalidArgument, match=f"Invalid low water mark: {mark}"):
        PoolArguments.parse(["/m", "/d", "128", mark]).low_water_blocks()


def test_features_are_case_insensitive_and_words_after_the_counted_ones_are_ignored() -> None:
    arguments = PoolArguments.parse(["/m", "/d", "128", "0", "2", "Skip_Block_Zeroing", "READ_ONLY", "extra", "junk"])
    assert arguments.features == {Feature.SKIP_BLOCK_ZEROING, Feature.READ_ONLY}


def test_pool_parameters_print_in_the_kernels_order_with_its_trailing_space() -> None:
    features = frozenset({Feature.ERROR_IF_NO_SPACE, Feature.SKIP_BLOCK_ZEROING})
    assert (
        format_pool_params("7:1", "7:0", 128, 10, features) == "7:1 7:0 128 10 2 skip_block_zeroing error_if_no_space "
    )
    assert format_pool_params("7:1", "7:0", 128, 1024, frozenset()) == "7:1 7:0 128 1024 0 "


def test_thin_arguments_take_an_origin_and_print_back() -> None:
    arguments = ThinArguments.parse(["254:0", "16777215", "7:2"])
    assert arguments.dev_id() == 16777215
    assert format_thin_params("254:0", 0, "7:2") == "254:0 0 7:2"
    assert format_thin_params("254:0", 3, None) == "254:0 3"


@pytest.mark.parametrize(
    ("params", "complaint"),
    [("p", "argument count: 1"), ("p 1 o x", "argument count: 4"), ("p 1 p", "origin device")],
)
def test_thin_arguments_that_cannot_be_are_refused(params: str, complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        ThinArguments.parse(params.split())


@pytest.mark.parametrize("dev_id", ["16777216", "x", "-1"])
def test_a_device_id_above_24_bits_or_no_decimal_is_refused(dev_id: str) -> None:
    with pytest.raises(InvalidArgument, match=f"Invalid device id: {dev_id}"):
        ThinArguments.parse(["p", dev_id]).dev_id()
