"""Writes the tutorial as Jupyter notebooks: docs/autograd.md becomes docs/autograd.ipynb, and docs/ko/ has the same in Korean.

What the blocks print is left out, since running them prints it. Links and figures stay, relative to the same folder.
"""

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).parent
PAGES = (FOLDER / "autograd.md", FOLDER / "ko" / "autograd.md")
LEFT_OUT = re.compile(r"^```text\n.*?^```$|^<!--.*?-->$", re.MULTILINE | re.DOTALL)
BORDER = re.compile(r"^```python\n(.*?)^```$|^(?=## )", re.MULTILINE | re.DOTALL)  # a block of code, or the start of a section


def notebook(page: Path) -> nbformat.NotebookNode:
    """A code cell for each Python block, and a Markdown cell for the text between two of them or below a heading."""
    parts = BORDER.split(LEFT_OUT.sub("", page.read_text(encoding="utf-8")))  # text and code alternate, code may be None
    cells = [
        (new_code_cell if index % 2 else new_markdown_cell)(part.strip(), id=f"cell-{index}")
        for index, part in enumerate(parts)
        if part and part.strip()
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


if __name__ == "__main__":
    for page in PAGES:
        nbformat.write(notebook(page), page.with_suffix(".ipynb"))
        print(page.with_suffix(".ipynb"))
