"""`thinfs restore`: a pool from XML; what is wrong in it is named with its line."""

from pathlib import Path

import pytest

from tests.thin_tools import V1_1_0, accepted, answer
from tests.tools.against_thin_tools import blank
from thinfs.cli.main import run

HEAD = '<superblock uuid="" time="1" transaction="2" data_block_size="128" nr_data_blocks="100">'
DEVICE = '<device dev_id="1" mapped_blocks="2" transaction="0" creation_time="0" snap_time="0">'


def restored(tmp_path: Path, text: str, *options: str) -> tuple[int, Path]:
    xml, target = tmp_path / "xml", blank(tmp_path / "target", 1 << 20)
    xml.write_text(text)
    return run(["restore", "-i", str(xml), "-o", str(target), *options]), target


def test_a_dump_is_restored_and_dumped_again(pool: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dump = answer("thin_dump", pool).stdout
    for text in (dump, answer("thin_dump", pool, version=V1_1_0).stdout):  # the latter with what is shared by name
        xml, target = tmp_path / "xml", blank(tmp_path / "target")
        xml.write_text(text)
        assert run(["restore", "-i", str(xml), "-o", str(target)]) == 0
        accepted(target)
        assert run(["check", "-q", str(target)]) == 0
        capfd.readouterr()
        assert run(["dump", str(target)]) == 0
        assert capfd.readouterr().out == dump


def test_xml_may_be_written_otherwise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = f"""<?xml version='1.0'?><!-- of mine -->
    {HEAD} <device snap_time = '0' creation_time="0" transaction="0" mapped_blocks="77" dev_id="5"
    ><range_mapping time='3' length="2" data_begin="7" origin_begin='4' /><!-- one -->
    <single_mapping data_block="9" origin_block="6" time="3"/></device></superblock>"""
    status, target = restored(tmp_path, text, "--transaction-id", "9", "--nr-data-blocks", "50")
    assert status == 0
    accepted(target)
    assert run(["dump", str(target)]) == 0
    assert capfd.readouterr().out.splitlines() == [
        '<superblock uuid="" time="1" transaction="9" flags="0" version="2" data_block_size="128" nr_data_blocks="50">',
        '  <device dev_id="5" mapped_blocks="3" transaction="0" creation_time="0" snap_time="0">',
        '    <range_mapping origin_begin="4" data_begin="7" length="3" time="3"/>',
        "  </device>",
        "</superblock>",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: the text ends too early"),
        ("<devices/>", "line 1: <devices> where <superblock> is expected"),
        (HEAD, "line 1: the text ends too early"),
        (HEAD.replace('time="1" ', ""), "line 1: no attribute 'time'"),
        (HEAD.replace('"100"', '"-1"'), "line 1: nr_data_blocks='-1': not a number up to 1099511627776"),
        (HEAD.replace('"128"', '"100"') + "</superblock>", "data block size of 100 sectors: not a multiple of 128"),
        (f"{HEAD}\n{DEVICE}\n<foo/></device></superblock>", "line 3: thin 1: <foo> where a mapping is expected"),
        (
            f'{HEAD}\n{DEVICE}\n<single_mapping origin_block="1" data_block="200" time="0"/></device></superblock>',
            "thin block 1: maps data block 200 of 100",
        ),
        (
            f'{HEAD}{DEVICE}<range_mapping origin_begin="1" data_begin="2" length="3" time="0"/>'
            '<single_mapping origin_block="3" data_block="9" time="0"/></device></superblock>',
            "thin 1: mapping of thin block 3, length 1, time 0: empty, too large, or not behind the one before it",
        ),
        (f'{HEAD}{DEVICE}<single_mapping origin_block="1" time="0"/></device>', "line 1: not a mapping: <single"),
        (f"{HEAD}{DEVICE}</device>\n{DEVICE}</device></superblock>", "thin 1: twice"),
        (f'{HEAD}{DEVICE}<ref name="7"/></device></superblock>', "<ref> to '7', which is not there"),
        (f"{HEAD}</superblock><more/>", "something follows </superblock>"),
        (HEAD.replace('"100"', f'"{1 << 40}"') + "</superblock>", "the space maps alone take 67372038"),
    ],
)
def test_what_is_wrong_is_one_line_and_no_pool(
    tmp_path: Path, text: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    status, target = restored(tmp_path, text)
    err = capfd.readouterr().err
    assert (status, len(err.splitlines())) == (1, 1)
    assert said in err
    assert run(["check", "-q", str(target)]) == 1


def test_a_run_without_end_fails_for_want_of_room_in_little_time(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (
        HEAD.replace('"100"', '"4000000"')
        + DEVICE
        + '<range_mapping origin_begin="0" data_begin="0" length="4000000" time="0"/></device></superblock>'
    )
    status, target = restored(tmp_path, text)
    assert status == 1
    assert capfd.readouterr().err == f"thinfs restore: {target}: its 256 metadata blocks are too few\n"
