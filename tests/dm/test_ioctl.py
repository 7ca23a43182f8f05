"""struct dm_ioctl: what one side packs the other reads, and no buffer brings anything but EINVAL."""

import errno
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinfs.dm import ioctl
from thinfs.dm.ioctl import Header, MalformedBuffer, NameEntry

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
NAMES = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1, max_size=30)
WORDS = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1, max_size=15)
NUMBERS = st.tuples(st.integers(1, 0xFFF), st.integers(0, 0xFFFFF))
LINES = st.lists(st.tuples(U64, U64, WORDS, st.lists(WORDS, max_size=8).map(" ".join)), max_size=4)
HEADERS = st.builds(
    Header, version=st.tuples(U32, U32, U32), data_size=U32, data_start=U32, target_count=U32,
    open_count=st.integers(-(2**31), 2**31 - 1), flags=U32, event_nr=U32, dev=NUMBERS, name=NAMES, uuid=NAMES,
)  # fmt: skip


def answered(payload: bytes, **fields: int) -> tuple[Header, bytes]:
    raw = ioctl.pack_answer(replace(Header(), **fields), payload, 1 << 20)  # type: ignore[arg-type]
    return Header.parse(raw), raw


@given(HEADERS)
def test_a_header_is_read_back(header: Header) -> None:
    assert len(header.pack()) == ioctl.HEADER_BYTES == 312
    assert Header.parse(header.pack()) == header


def test_the_request_numbers_are_those_of_the_header_file() -> None:
    assert ioctl.request_number("version") == 0xC138FD00
    assert ioctl.request_number("table_status") == 0xC138FD0C
    assert ioctl.request_number("get_target_version") == 0xC138FD11


@given(NUMBERS)
def test_a_device_number_is_read_back(number: ioctl.Number) -> None:
    assert ioctl.decode_dev(ioctl.encode_dev(number)) == number


@given(LINES)
def test_a_packed_load_is_read_back_as_the_same_lines(lines: list[tuple[int, int, str, str]]) -> None:
    count, payload = ioctl.pack_load("\n".join(" ".join(map(str, line)) for line in lines))
    assert len(payload) % 8 == 0
    raw = ioctl.pack_request(Header(target_count=count), payload, 0)
    assert ioctl.read_load(Header.parse(raw), raw) == lines


@given(LINES)
def test_a_packed_table_is_read_back_as_the_same_lines(lines: list[tuple[int, int, str, str]]) -> None:
    text = "\n".join(" ".join(map(str, line)) for line in lines)
    count, payload, _ = ioctl.pack_table(text)
    assert ioctl.read_table(*answered(payload, target_count=count)) == text


@given(st.lists(st.builds(NameEntry, NUMBERS, NAMES, U32, st.none() | NAMES | st.just("")), min_size=1, max_size=5))
def test_a_list_of_names_is_read_back(entries: list[NameEntry]) -> None:
    assert ioctl.read_names(*answered(ioctl.pack_names(entries))) == entries


@given(st.lists(st.tuples(WORDS, st.tuples(U32, U32, U32)), min_size=1, max_size=5))
def test_target_versions_are_read_back_and_the_kernel_s_count_is_never_less_than_they_need(
    targets: list[tuple[str, tuple[int, int, int]]],
) -> None:
    payload, needed = ioctl.pack_versions(targets)
    assert needed >= len(payload)
    assert ioctl.read_versions(*answered(payload)) == targets


@given(st.lists(NUMBERS, max_size=5))
def test_deps_are_read_back(numbers: list[ioctl.Number]) -> None:
    assert ioctl.read_deps(*answered(ioctl.pack_deps(numbers))) == numbers


@given(U64, NAMES)
def test_a_message_is_read_back(sector: int, message: str) -> None:
    raw = ioctl.pack_request(Header(), ioctl.pack_message(sector, message), 0)
    assert ioctl.read_message(Header.parse(raw), raw) == (sector, message)


def test_bytes_that_are_no_text_come_through() -> None:
    name = b"\xff\xfe x".decode("utf-8", "surrogateescape")
    raw = Header(name=name).pack()
    assert raw[48:52] == b"\xff\xfe x"
    assert Header.parse(raw).name == name


@pytest.mark.parametrize("line", ["0 100", "zero 100 linear", "0 -1 linear", "0x0 100 linear"])
def test_a_line_that_is_no_table_is_refused_with_einval(line: str) -> None:
    with pytest.raises(MalformedBuffer, match="not `start length target params`") as caught:
        ioctl.pack_load(line)
    assert caught.value.errno == errno.EINVAL


@given(st.binary(max_size=200), st.integers(0, 700), st.integers(0, 5), st.lists(st.tuples(st.integers(0, 40), U32)))
def test_a_wild_buffer_is_einval_and_nothing_else(
    payload: bytes, start: int, count: int, pokes: list[tuple[int, int]]
) -> None:
    raw = bytearray(Header(data_start=start, target_count=count).pack() + payload)
    for at, value in pokes:
        if ioctl.HEADER_BYTES + 4 * at + 4 <= len(raw):
            struct.pack_into("<I", raw, ioctl.HEADER_BYTES + 4 * at, value)
    header = Header.parse(raw)
    for read in (ioctl.read_load, ioctl.read_message, ioctl.read_new_name, ioctl.read_string, ioctl.read_table):
        try:
            read(header, raw)
        except MalformedBuffer as error:
            assert error.errno == errno.EINVAL


def test_an_answer_that_does_not_fit_says_so_and_has_the_lines_that_do() -> None:
    count, payload, cuts = ioctl.pack_table("0 8 zero \n8 8 error ")
    whole = ioctl.pack_answer(Header(target_count=count), payload, 312 + len(payload), cuts=cuts)
    assert Header.parse(whole).flags == 0
    assert len(whole) == Header.parse(whole).data_size == 401  # as kernel 6.1
    one = ioctl.pack_answer(Header(target_count=count), payload, 360, cuts=cuts)
    assert Header.parse(one).flags == ioctl.BUFFER_FULL
    assert len(one) == Header.parse(one).data_size == 353
    none = ioctl.pack_answer(Header(target_count=count), payload, 312, cuts=cuts)
    assert Header.parse(none).flags == ioctl.BUFFER_FULL
    assert len(none) == Header.parse(none).data_size == ioctl.SHORT_HEADER_BYTES
