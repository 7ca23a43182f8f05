"""What the bench makes of its numbers: ratios, disagreement, spread."""

from hypothesis import given
from hypothesis import strategies as st

from bench.rounds import Ratio, Row, ratio

VALUES = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=9)


def row(*, higher_is_better: bool = True, **values: list[float]) -> Row:
    return Row("section", "name", "IO/s", higher_is_better, values)


def test_a_ratio_is_the_median_of_the_ratios_within_rounds() -> None:
    # the medians themselves, 20 and 10, would say 2
    assert row(thinfs=[10, 20, 90], peer=[1, 10, 30]).ratio("thinfs", "peer") == Ratio(3.0, True)


def test_rounds_on_both_sides_of_one_disagree_and_the_ratio_says_so() -> None:
    found = row(thinfs=[10, 10, 10], peer=[9, 8, 11]).ratio("thinfs", "peer")
    assert found is not None and not found.agreed and str(found) == "1.11?"


def test_where_less_is_better_the_ratio_still_says_how_many_times_faster() -> None:
    assert row(higher_is_better=False, thinfs=[5], peer=[10]).ratio("thinfs", "peer") == Ratio(2.0, True)


def test_rounds_that_were_not_measured_together_have_no_ratio() -> None:
    assert row(thinfs=[1, 2], peer=[1]).ratio("thinfs", "peer") is None
    assert row(thinfs=[1, 2]).ratio("thinfs", "peer") is None
    assert row(thinfs=[0.0], peer=[1]).ratio("thinfs", "peer") is None


def test_the_spread_is_the_range_over_the_median_and_needs_two_rounds() -> None:
    assert row(thinfs=[8, 10, 13]).spread("thinfs") == 0.5
    assert row(thinfs=[8]).spread("thinfs") is None
    assert row().median("thinfs") is None


@given(VALUES)
def test_nobody_is_faster_than_itself(values: list[float]) -> None:
    assert ratio(values, values, higher_is_better=True) == Ratio(1.0, True)


@given(st.lists(st.tuples(st.floats(0.1, 1e6), st.floats(0.1, 1e6)), min_size=1, max_size=9))
def test_both_sides_of_a_comparison_agree_on_whether_the_rounds_agree(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = [one for one, _ in pairs], [other for _, other in pairs]
    one, other = ratio(ours, theirs, higher_is_better=True), ratio(theirs, ours, higher_is_better=True)
    assert one is not None and other is not None and one.agreed == other.agreed


def test_a_row_survives_the_way_to_json_and_back() -> None:
    one = row(thinfs=[1.5, 2.5])
    assert Row.from_json(one.as_json()) == one
