"""Every citation of docs/reference leads to a section that is there, and none leads out of the repository."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
REFERENCE = TOP / "docs/reference"

# `docs/reference/FILE.md`, then perhaps `, SECTION`: numbers and ranges of numbers joined by commas and `and`, or a
# heading in double quotes.
_NUMBERS = r"\d+(?:\.\d+)*(?:(?:-| to |, | and |, and )\d+(?:\.\d+)*)*"
CITATION = re.compile(rf'docs/reference/([\w-]+\.md)(?:, ({_NUMBERS}|"[^"]+"))?')
# What citations looked like before, and what no reader of the repository could follow.
LEADS_OUT = re.compile(r"\b(format|behaviou?r|transcript|guest|fuse) reference\b|\breference, \d|\b[Ss]ections? \d")


def sources() -> Iterator[Path]:
    for package in ("thinfs", "kernel_backend", "tests", "bench"):
        for path in sorted((TOP / package).rglob("*.py")):
            if path != Path(__file__):
                yield path
    yield from (TOP / "README.md", TOP / "setup.py", TOP / "Makefile", *sorted((TOP / "docs").rglob("*.md")))


def text_of(path: Path) -> str:
    """Without the ends of lines, which may fall within a citation, and what a comment's next line begins with."""
    return re.sub(r"\s*\n\s*(# )?", " ", path.read_text())


def headings(path: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)


def sections(path: Path) -> set[str]:
    return {found[1] for one in headings(path) if (found := re.match(r"(\d+(?:\.\d+)*)\.? ", one))}


def missing(citation: "re.Match[str]") -> str | None:
    """What the citation names and the reference has not."""
    path = REFERENCE / citation[1]
    if not path.is_file():
        return f"docs/reference/{citation[1]}"
    if not citation[2]:
        return None
    if citation[2].startswith('"'):
        return None if citation[2].strip('"') in headings(path) else citation[2]
    wanted = re.findall(r"\d+(?:\.\d+)*", citation[2])
    return next((one for one in wanted if one not in sections(path)), None)


def test_every_citation_leads_to_a_section_that_is_there() -> None:
    citations = [(path, found) for path in sources() for found in CITATION.finditer(text_of(path))]
    assert len(citations) > 40
    broken = [f"{path.relative_to(TOP)}: {found[0]}" for path, found in citations if missing(found) is not None]
    assert broken == []


def test_no_citation_leads_out_of_the_repository() -> None:
    found = [
        f"{path.relative_to(TOP)}: {one[0]}"
        for path in sources()
        if path.suffix == ".py"
        for one in LEADS_OUT.finditer(text_of(path))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("docs/reference/format.md, 9.3 and 9.4.", None),
        ("docs/reference/format.md, 5.1 to 5.4", None),
        ("docs/reference/behaviour.md, 6.1-6.4, 7. Mirrors", None),
        ('docs/reference/guest.md, "Channel"', None),
        ("docs/reference/dmsetup.md). Columns", None),
        ("docs/reference/nowhere.md, 1", "docs/reference/nowhere.md"),
        ("docs/reference/format.md, 9.7", "9.7"),
        ("docs/reference/format.md, 9, 17 and 2", "17"),
        ('docs/reference/guest.md, "Canal"', '"Canal"'),
    ],
)
def test_a_citation_is_followed_to_the_section(text: str, named: str | None) -> None:
    found = CITATION.search(text)
    assert found is not None
    assert missing(found) == named


@pytest.mark.parametrize("name", sorted(path.name for path in REFERENCE.glob("*.md")))
def test_the_numbers_of_a_reference_s_sections_are_its_own(name: str) -> None:
    numbered = [one.split()[0] for one in headings(REFERENCE / name) if re.match(r"\d", one)]
    assert len(numbered) == len(set(numbered))
