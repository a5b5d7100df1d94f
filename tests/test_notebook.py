"""The tutorial's notebook runs in a Jupyter kernel, and prints what the page shows; tests/test_docs.py compares the numbers."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from docs.notebook import PAGES, notebook
from tests.factory import ROOT
from tests.test_docs import BLOCK, NUMBER


def test_the_notebook_runs_and_prints_what_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # instead of the user's profile and history
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ran = notebook(PAGES[0])
    NotebookClient(ran, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = []
    for cell in ran.cells:
        outputs = cell.get("outputs", [])
        assert {(output.output_type, output.get("name")) for output in outputs} <= {("stream", "stdout")}, cell.source
        printed += ["".join(output.text for output in outputs)] if outputs else []
    shown = [text for kind, text in BLOCK.findall(PAGES[0].read_text(encoding="utf-8")) if kind == "text"]
    assert len(shown) > 30
    assert [NUMBER.sub("#", text).split() for text in printed] == [NUMBER.sub("#", text).split() for text in shown]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_a_notebook_has_the_pages_code_and_prose_without_what_is_printed(page):
    text, book = page.read_text(encoding="utf-8"), notebook(page)
    nbformat.validate(book)
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    assert code == [block.strip() for kind, block in BLOCK.findall(text) if kind == "python"]
    assert prose.split() == re.sub(r"<!--.*?-->", "", BLOCK.sub("", text)).split()
    assert len([cell for cell in book.cells if cell.source.startswith("## ")]) == 34
