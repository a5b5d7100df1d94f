"""The pages of docs/ are run: each page's python blocks from top to bottom, as one program. A text block after one is what it
prints, in which numbers may differ by a hundredth, and those behind a ~, times and rounding errors, by a factor of ten."""

import contextlib
import io
import re
import shlex
import sys
import types

import pytest

from tests.factory import ROOT
from tests.test_gradients import PICTURES
from vla_mini.config.compose import compose

PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(~?)([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)")
ROUNDING = 1e-5  # an error below this may as well be none


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_the_docs_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    module = types.ModuleType(f"docs_{page.stem}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    printed = ""
    for block in BLOCK.finditer(text):
        kind, code = block.groups()
        line = text.count("\n", 0, block.start(2))
        if kind == "text":
            assert_prints(printed, code)
            printed = ""
            continue
        assert not printed, f"before line {line}: the page does not show what is printed, {printed!r}"
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(compile("\n" * line + code, str(page), "exec"), vars(module))  # with the page's own line numbers
        printed = output.getvalue()
    assert not printed, f"the page ends without showing what is printed, {printed!r}"


def assert_prints(printed: str, shown: str) -> None:
    message = f"the page shows\n{shown}\nbut it is\n{printed}"
    assert NUMBER.sub(r"\1#", printed).split() == NUMBER.sub(r"\1#", shown).split(), message
    for (rough, number), (_, expected) in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        low, high = sorted([float(number), float(expected)])
        near = high <= 10 * low or high < ROUNDING if rough else float(number) == pytest.approx(float(expected), rel=1e-2)
        assert near, message


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_the_docs_lead_somewhere(page):
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_pictures_of_the_tour_are_those_that_gradients_py_writes():
    shown = set(re.findall(r"\]\(gradients/(\w+)\.svg\)", (ROOT / "docs" / "autograd.md").read_text(encoding="utf-8")))
    there = {path.stem: path for path in (ROOT / "docs" / "gradients").iterdir()}
    assert shown == there.keys() and shown - {"scene_1"} == PICTURES
    assert all(path.stat().st_size < 150_000 for path in there.values())


def test_the_comparisons_can_be_made():
    lines = re.findall(r"^python scripts/compare.py (.*)", (ROOT / "docs" / "comparisons.md").read_text(encoding="utf-8"), re.M)
    assert len(lines) > 5 and all(len(compose("compare", shlex.split(line)).settings["variants"]) > 1 for line in lines)


def test_the_optimizers_are_compared_under_one_number_of_steps():
    found = compose("compare", ["study=optimizers"]).settings
    said = [["experiment=toy_pick", *variant] for variant in found["variants"].values()]
    classes = {compose("train", arguments).settings["optimizer"]["_target_"] for arguments in said}
    assert {f"torch.optim.{name}" for name in ("SGD", "Adam", "RMSprop", "AdamW")} <= classes
    assert found["budget"]["steps"] > 0 and found["budget"]["seconds"] is None


def test_a_page_that_lies_is_found():
    assert_prints("a 0.123\n", "a  0.1229\n")
    for shown in ("a 0.2", "b 0.123"):
        with pytest.raises(AssertionError):
            assert_prints("a 0.123", shown)
    assert_prints("~3e-07 ~2 ~0e+00", "~9e-07 ~0.5 ~1e-16")
    for printed, shown in (("~2", "~0.19"), ("2", "~2"), ("~0", "~0.1")):
        with pytest.raises(AssertionError):
            assert_prints(printed, shown)
