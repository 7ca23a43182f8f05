"""The drop-in opens for its server what its own command line names, and nothing else."""

import json
from pathlib import Path

import pytest

from thinfs.cli import dmsetup


def answer_to(path: str | None, argv: list[str]) -> dict[str, object]:
    answer: dict[str, object] = json.loads(dmsetup._file(json.dumps({"need": path}).encode(), argv))
    return answer


def test_a_file_on_the_command_line_is_read(tmp_path: Path) -> None:
    table = tmp_path / "table"
    table.write_text("0 8 zero\n")
    for argv in (
        ["create", "x", str(table)],
        ["create", "x", "--table", str(table)],
        ["create", "x", f"--tab={table}"],
    ):
        assert answer_to(str(table), argv) == {"text": "0 8 zero\n"}


@pytest.mark.parametrize("argv", [[], ["ls"], ["create", "x", "--table", "0 8 zero"], ["create", "{}.not"]])
def test_another_file_is_not(tmp_path: Path, argv: list[str]) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of value\n")
    answer = answer_to(str(secret), [word.format(secret) for word in argv])
    assert answer["error"] == 1
    assert "of value" not in str(answer)
