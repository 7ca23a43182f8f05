"""`thinfs metadata-size`: the answers of thin_metadata_size."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.thin_tools import answer
from thinfs.cli.main import run

LETTERS = "bskKmMgGtTpPeE"


def both(*options: str) -> tuple[str, str]:
    """What the other says, and what ours must say."""
    other = answer("thin_metadata_size", *options)
    return other.stdout.replace("thin_metadata_size", "thinfs metadata-size"), other.stderr


@settings(max_examples=80, deadline=None)
@given(
    block=st.sampled_from(("64k", "128", "256k", "1m", "65536b", "1g", "96k")),
    amount=st.integers(1, 1 << 20),
    letter=st.sampled_from(("k", "m", "g", "s", "K", "M", "")),
    max_thins=st.integers(1, 1 << 24),
    unit=st.sampled_from(LETTERS),
)
def test_every_answer_is_that_of_thin_metadata_size(
    block: str, amount: int, letter: str, max_thins: int, unit: str
) -> None:
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    options = ("-b", block, "-s", f"{amount}{letter}", "-m", str(max_thins), "-u", unit)
    expected, complaint = both(*options)
    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        status = run(["metadata-size", *options])
    assert out.getvalue() == expected
    assert status == (1 if complaint else 0)
    assert err.getvalue() == complaint.replace("thin_metadata_size - ", "thinfs metadata-size: ")


@pytest.mark.parametrize("numeric", ["-n", "-nshort", "-nlong", "--numeric-only=long"])
def test_numbers_alone_are_those_of_thin_metadata_size(numeric: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("-b", "64k", "-s", "1t", "-m", "1000", "-u", "m", numeric)
    assert run(["metadata-size", *options]) == 0
    assert capsys.readouterr().out == both(*options)[0]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-b", "64k"),
        ("-b", "64k", "-s", "1g"),
        ("-b", "64k", "-s", "1g", "-m", "0"),
        ("-b", "64k", "-s", "64k", "-m", "1"),
        ("-b", "64k", "-s", "66K", "-m", "1"),
        ("-b", "100k", "-s", "1g", "-m", "1"),
        ("-b", "64k", "-s", "1.5g", "-m", "1"),
        ("-b", "64k", "-s", "1x", "-m", "1"),
        ("-b", "64k", "-s", "1g", "-m", "1", "-u", "x"),
    ],
    ids=" ".join,
)
def test_a_refusal_has_the_words_of_thin_metadata_size(
    options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    _, complaint = both(*options)
    assert run(["metadata-size", *options]) == 1
    assert capsys.readouterr() == ("", complaint.replace("thin_metadata_size - ", "thinfs metadata-size: "))
