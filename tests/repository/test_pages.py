"""What the pages show is what happens: the Python of README.md and of the book runs, and prints the lines below it.

A block of code and the block of text right after it belong together. The blocks of a page go on from one another. After
```text roughly the words must agree, the numbers to within a factor of ten: roundings differ from one machine to another.
"""

import contextlib
import io
import json
import re
import runpy
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

import gnewton as gn

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"
PAGES = [ROOT / "README.md", *sorted(BOOK.glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$(\n\s*(?=```text))?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def named(paths: list[Path]) -> list[object]:
    return [pytest.param(path, id=path.name) for path in paths]


def examples(page: str) -> list[tuple[str, str | None, bool]]:
    """(code, the lines that it prints or None where none are shown, whether they are rough) of each Python block."""
    blocks: list[tuple[str, str | None, bool]] = []
    follows = False
    for language, more, content, next_is_text in BLOCK.findall(page):
        if language == "python":
            blocks.append((content, None, False))
        elif language == "text" and follows:
            blocks[-1] = (blocks[-1][0], content, more.strip() == "roughly")
        follows = language == "python" and bool(next_is_text)
    return blocks


def agree(shown: str, printed: str, roughly: bool) -> bool:
    if not roughly:
        return shown == printed
    words = [NUMBER.sub("#", text).split() for text in (shown, printed)]
    numbers = [[float(n) for n in NUMBER.findall(text)] for text in (shown, printed)]
    return words[0] == words[1] and all(
        a == b or (a * b > 0 and 0.1 <= a / b <= 10) for a, b in zip(*numbers, strict=True)
    )


@pytest.mark.parametrize("page", named([page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]))
def test_the_examples_run_and_print_what_they_say(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some write files
    scope: dict[str, object] = {"__name__": page.name}
    for code, shown, roughly in examples(page.read_text(encoding="utf-8")):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, page.name, "exec"), scope)
        assert shown is None or agree(shown, out.getvalue(), roughly), f"{code}\nprinted\n{out.getvalue()}"


def test_the_readme_shows_numbers() -> None:
    assert examples((ROOT / "README.md").read_text(encoding="utf-8"))[0][1]


def test_a_wrong_number_is_noticed() -> None:
    page = "```python\nprint(2)\n```\n\n```text\n2\n```\n\nThen\n\n```text\nmake tea\n```\n"
    assert examples(page) == [("print(2)\n", "2\n", False)]
    assert examples(page.replace("text", "text roughly"))[0][2]
    assert not agree("2\n", "3\n", roughly=False)
    assert agree("error  2e-7, True\n", "error 1.5e-06, True\n", roughly=True)
    for printed in ("error  3e-6, True\n", "error  0, True\n", "error  2e-7, False\n", "error  2e-7, True 1\n"):
        assert not agree("error  2e-7, True\n", printed, roughly=True)


def test_every_section_of_the_refresher_has_paper_and_code() -> None:
    for section in re.split(r"(?m)^## ", (BOOK / "refresher.md").read_text(encoding="utf-8"))[1:]:
        assert "**On paper" in section
        assert section.count("```python") == 1


# -- links ---------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.*)$", page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: str, folder: Path, own: set[str]) -> list[str]:
    """The page's links to files that are not there, or to sections that they do not have."""
    wrong = []
    prose = re.sub(r"(?s)```.*?```|`[^`\n]*`", "", page)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'(?:src|href)="([^"]+)"', prose):
        if "://" in link:
            continue
        file, _, section = unquote(link).partition("#")
        if (file and not (folder / file).exists()) or (
            section and section not in (anchors(folder / file) if file else own)
        ):
            wrong.append(link)
    return wrong


@pytest.mark.parametrize("page", named([*PAGES, ROOT / "CONTRIBUTING.md"]))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page.read_text(encoding="utf-8"), page.parent, anchors(page)) == []


def test_a_broken_link_is_noticed() -> None:
    page = "[a](nowhere.md) [b](glossary.md#h-bar) [c](glossary.md#h) [d](#top) [e](#end) [f](https://x.org) `[g](nowhere.md)`"
    assert broken(page, BOOK, {"top"}) == ["nowhere.md", "glossary.md#h", "#end"]


def test_a_term_of_the_glossary_stands_there_once_and_briefly() -> None:
    entries = re.findall(r"(?m)^### (.*)\n\n(.*(?:\n.+)*)", (BOOK / "glossary.md").read_text(encoding="utf-8"))
    names = [name.lower() for name, _ in entries]
    assert len(set(names)) == len(names) > 50
    assert {"h-bar", "g-bar", "d3", "d", "partition", "secular equation", "tape"} <= set(names)
    long = [name for name, text in entries if len(re.findall(r"[.?!](?=\s|$)", text)) > 4]
    assert long == []


def test_the_messages_in_the_gotchas_are_the_library_s() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "gnewton").rglob("*.py"))
    quoted = re.findall(r'"([a-z][^"`\n]{20,})"', (BOOK / "gotchas.md").read_text(encoding="utf-8"))
    assert len(quoted) >= 5
    assert [message for message in quoted if message not in source] == []


# -- pictures, tables, citation ------------------------------------------------------------------------------------

PICTURES = runpy.run_path(str(BOOK / "pictures.py"))


@pytest.mark.parametrize("name", ["idea", "prerequisites"])
def test_pictures_are_what_their_script_draws(name: str) -> None:
    drawn, kept = PICTURES[name](), (BOOK / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    assert NUMBER.sub("#", drawn) == NUMBER.sub("#", kept)
    # Sizes come from float32 numbers, and are rounded to tenths of a pixel.
    for a, b in zip(NUMBER.findall(drawn), NUMBER.findall(kept), strict=True):
        assert abs(float(a) - float(b)) < 0.3


def test_the_graph_and_the_readme_name_every_notebook() -> None:
    names = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert names <= set(PICTURES["NOTEBOOKS"])
    assert re.findall(r"(?m)^\| `(\d\d-[\w-]+)` \|", (ROOT / "README.md").read_text(encoding="utf-8")) == list(
        PICTURES["NOTEBOOKS"]
    )


def test_a_notebook_comes_after_those_that_it_needs() -> None:
    rows = {name[:2]: row for name, (*_, row, _) in PICTURES["NOTEBOOKS"].items()}
    for name, (*_, needs) in PICTURES["NOTEBOOKS"].items():
        assert all(rows[need] < rows[name[:2]] and need < name[:2] for need in needs)


def test_the_costs_in_the_readme_are_those_that_were_measured() -> None:
    measured: dict[str, list[float]] = {}
    for order in (2, 3):
        results = json.loads((ROOT / "benchmarks" / "results" / f"work-order-{order}.json").read_text())
        for network in results:
            ratio = {row["peer"]: row.get("ratio") for row in network["rows"]}
            measured.setdefault(network["network"], []).extend([ratio["engine"], ratio["tightened"]])
    rows = re.findall(r"(?m)^\| (\w+) \| \d+ ((?:\| [\d.]+ ){4})\|$", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(rows) >= 3
    for name, cells in rows:
        h, h_passes, third, third_passes = measured[name]
        shown = [float(cell) for cell in cells.split("|")[1:]]
        assert shown == pytest.approx([h, third, h_passes, third_passes], rel=5e-3)


def test_the_citation_names_this_version_and_both_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == gn.__version__
    assert citation["license"] == "MIT"
    assert [paper["identifiers"][0]["value"] for paper in citation["references"]] == [
        "arXiv:2312.03885",
        "arXiv:2104.03804",
    ]


def test_every_reference_is_cited() -> None:
    keys = re.findall(r"(?m)^@\w+\{(\w+),", (BOOK / "references.bib").read_text(encoding="utf-8"))
    cited = re.findall(
        r"\{cite:[tp]\}`([^`]+)`", "".join(path.read_text(encoding="utf-8") for path in BOOK.glob("*.md"))
    )
    assert len(keys) > 15
    assert {key.strip() for group in cited for key in group.split(",")} == set(keys)
