"""What tests of pages and drawings have in common."""

import re
import xml.etree.ElementTree as ElementTree


def drawings(html: str) -> list[ElementTree.Element]:
    """The inline SVGs of a page, parsed."""
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)]


def texts(drawing: ElementTree.Element) -> list[str]:
    """The texts of a drawing, in order."""
    return [text.text for text in drawing.iter() if text.tag.endswith("text")]


def check_self_contained(html: str) -> None:
    """A page runs no script and loads nothing, and its ids are unique."""
    assert "<script" not in html
    assert not re.search(r"https?://|url\((?!#)|@import", html)
    sources = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    ids = [element.get("id") for drawing in drawings(html) for element in drawing.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
