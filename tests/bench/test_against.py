"""`--against CHECKOUT`: the trees take turns, rows hold both, and what is no set-up checkout is refused."""

from pathlib import Path

import pytest

from bench import __main__ as command
from bench import metadata_images
from bench.against import OTHER, THIS, NotSetUp, Tree, engine_rows, render
from bench.rounds import Row, turned
from bench.table import Run

TREES = [Tree(THIS, Path("/here")), Tree(OTHER, Path("/there"))]


def measured(rounds: int) -> tuple[list[tuple[str, str, int]], list[Row]]:
    order: list[tuple[str, str, int]] = []

    def measure(tree: Tree, case: str, size: int) -> dict[str, float]:
        order.append((tree.name, case, size))
        nr = float(len(order))
        return {"lookup, us": nr, **({"something new, us": nr} if tree.name == THIS else {})}

    return order, engine_rows(TREES, {"mapped": (1000, 2000)}, rounds, lambda _: None, measure)


def test_the_trees_follow_each_other_in_every_row_and_change_places_with_the_round() -> None:
    order, _ = measured(2)
    assert order == [
        (THIS, "mapped", 1000),
        (OTHER, "mapped", 1000),
        (THIS, "mapped", 2000),
        (OTHER, "mapped", 2000),
        (OTHER, "mapped", 1000),
        (THIS, "mapped", 1000),
        (OTHER, "mapped", 2000),
        (THIS, "mapped", 2000),
    ]


def test_a_row_has_both_trees_values_in_the_order_of_the_rounds() -> None:
    _, rows = measured(2)
    found = {row.name: row for row in rows}
    assert found["lookup (1,000)"].values == {THIS: [1.0, 6.0], OTHER: [2.0, 5.0]}
    assert found["lookup (2,000)"].values == {THIS: [3.0, 8.0], OTHER: [4.0, 7.0]}


def test_the_table_says_how_many_times_faster_this_tree_is_where_both_have_the_row() -> None:
    _, rows = measured(1)
    text = render(Run({THIS: "abc", OTHER: "def", "rounds": "1", "cpu": "abacus"}, rows, []))
    assert "| lookup (1,000), us | 1.00 | 2.00 | 2.00 |" in text
    assert "| something new (1,000), us | 1.00 | - | - |" in text
    assert "- this: abc\n- other: def\n- rounds: 1" in text


@pytest.mark.parametrize(("number", "expected"), [(0, [1, 2, 3]), (1, [2, 3, 1]), (5, [3, 1, 2])])
def test_everybody_comes_first_once_in_as_many_rounds_as_there_are(number: int, expected: list[int]) -> None:
    assert turned([1, 2, 3], number) == expected


def test_a_directory_that_is_no_checkout_or_is_not_set_up_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotSetUp, match=f"{tmp_path}: not a checkout of thinfs"):
        Tree(OTHER, tmp_path).check()
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/engine_cases.py").touch()
    with pytest.raises(NotSetUp, match=f"{tmp_path}: not set up"):
        Tree(OTHER, tmp_path).check()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--only", "guest"], "--against compares engine and front only"),
        (["--rounds", "0"], "--rounds 0: at least 1"),
        ([], "/nowhere: not a checkout of thinfs with a bench"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    words: list[str], complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "run", "--against", "/nowhere", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(complaint)


def test_the_same_pools_are_given_to_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = tmp_path / "ours" / "metadata-1000.img"
    image.parent.mkdir()
    image.write_bytes(b"pool")
    monkeypatch.setattr(metadata_images, "image", lambda _: image)
    Tree(OTHER, tmp_path / "other").share_image(1000)
    assert (tmp_path / "other/.cache/bench/metadata-1000.img").read_bytes() == b"pool"
