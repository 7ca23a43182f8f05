"""The bench's table, and how it gets into the README; what fio's answers mean."""

import json

import pytest

from bench.fio import MIB, Job, result_of
from bench.rounds import Row
from bench.table import BEGIN, END, Run, by_size, number, put_between_markers, render, summary

MACHINE = {"date": "2024-02-29", "cpu": "abacus"}


def run() -> Run:
    front = Row(
        "front to back, tmpfs", "4K random read", "IO/s", True, {"thinfs": [90, 110, 100], "qemu": [100, 100, 100]}
    )
    engine = Row("engine: mapped blocks", "lookup", "us", False, {"1000": [1.0, 1.0], "10000000": [1.5, 1.5]})
    return Run(MACHINE, [front, engine], ["one row\nis left out"])


def test_a_row_shows_median_spread_and_ratio_with_its_doubt() -> None:
    assert "| 4K random read | 100 IO/s ±10% | 1.00? | - | - | - |" in render(run())


def test_a_row_of_the_engine_shows_its_sizes_in_order_and_its_growth() -> None:
    rows = [row for row in run().rows if row.section.startswith("engine")]
    assert by_size(rows).splitlines() == [
        "|  | 1,000 | 10,000,000 | growth |",
        "|---|---|---|---|",
        "| lookup, us | 1.00 ±0% | 1.50 ±0% | 1.50x |",
    ]


def test_the_table_says_when_and_where_it_was_measured_and_which_flushes_count() -> None:
    text = render(run())
    assert "Measured: date 2024-02-29, cpu abacus." in text
    assert "Flush semantics are the same on both sides" in text
    assert "- one row is left out" in text


def test_a_run_survives_the_way_to_json_and_back() -> None:
    assert Run.from_json(json.loads(json.dumps(run().as_json()))) == run()


def test_the_table_replaces_what_is_between_the_markers_and_nothing_else() -> None:
    text = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    assert put_between_markers(text, "new") == f"above\n{BEGIN}\nnew\n{END}\nbelow\n"
    assert put_between_markers("no markers", "new") == "no markers"


@pytest.mark.parametrize(("value", "text"), [(None, "-"), (1234.5, "1,234"), (12.34, "12.3"), (0.5, "0.50")])
def test_numbers_show_three_digits_that_count(value: float | None, text: str) -> None:
    assert number(value) == text


def answer(**side: int) -> str:
    job = {"error": 0, "job_runtime": 2000, "read": {}, "write": {"runtime": 1000, **side}}
    return "fio: a warning\n" + json.dumps({"jobs": [job]})


def test_the_last_fsync_of_a_write_job_counts_in_its_time() -> None:
    assert result_of(answer(io_bytes=100 * MIB, total_ios=100), Job("w", "write", MIB)) == pytest.approx(52.4288)
    assert result_of(answer(io_bytes=4096 * 500, total_ios=500), Job("w", "randwrite", 4096)) == 250


def test_a_failed_job_is_no_measurement() -> None:
    failed = json.dumps({"jobs": [{"error": 5, "job_runtime": 1, "write": {"runtime": 1}}]})
    with pytest.raises(RuntimeError, match="fio job w: error 5"):
        result_of(failed, Job("w", "write", MIB))


def test_every_write_job_ends_in_an_fsync_for_every_subject() -> None:
    assert "--end_fsync=1" in Job("w", "randwrite", 4096).arguments("file", MIB, 1)
    assert "--end_fsync=0" in Job("r", "randread", 4096).arguments("file", MIB, 1)


def test_the_readme_has_five_rows_at_most_and_when_they_were_measured() -> None:
    text = summary(run())
    assert [line for line in text.splitlines() if "IO/s" in line] == ["| 4K random read | 100 IO/s ±10% | 1.00? | - |"]
    assert text.endswith("Front to back, tmpfs; date 2024-02-29, cpu abacus.")
