"""The pages of docs/ are run: each page's python blocks from top to bottom, as one program. A text block after one is what it
prints, in which numbers may differ by a hundredth from machine to machine."""

import contextlib
import io
import re
import sys
import types

import pytest

from tests.factory import ROOT

PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_the_docs_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    module = types.ModuleType(f"docs_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    printed = ""
    for block in BLOCK.finditer(text):
        kind, code = block.groups()
        if kind == "text":
            assert_prints(printed, code)
            continue
        line = text.count("\n", 0, block.start(2))
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile("\n" * line + code, str(page), "exec"), vars(module))  # with the page's own line numbers
        printed = output.getvalue()


def assert_prints(printed: str, shown: str) -> None:
    assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", shown).split(), f"the page shows\n{shown}\nbut it is\n{printed}"
    numbers, expected = ([float(number) for number in NUMBER.findall(text)] for text in (printed, shown))
    assert numbers == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_the_docs_lead_somewhere(page):
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_tour_takes_the_concepts_in_order():
    """One section a concept, numbered without a gap."""
    numbers = re.findall(r"^## (\d+)\. ", (ROOT / "docs" / "autograd.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert list(map(int, numbers)) == list(range(1, len(numbers) + 1)) and len(numbers) >= 33


def test_a_page_that_lies_is_found():
    assert_prints("a 0.123\n", "a  0.1229\n")
    for shown in ("a 0.2", "b 0.123"):
        with pytest.raises(AssertionError):
            assert_prints("a 0.123", shown)
