"""The Python of the pages in docs/ runs, from top to bottom as one program. A text block shows what the block before it prints:
numbers may differ by 1 %, and those after a ~ (times and rounding errors) by a factor of ten. The blocks of
docs/ko/autograd.md are those of docs/autograd.md, and are not run again."""

import contextlib
import hashlib
import io
import re
import shlex
import sys
import types

import pytest

from tests.factory import ROOT
from tests.test_gradients import PICTURES
from vla_mini import config

PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.stem != "real_data")  # which has tests of its own
LINKING = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md")), ROOT / "data" / "README.md"]
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANY_BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
NUMBER = re.compile(r"(~?)([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)")
ROUNDING = 1e-5  # a rounding error below this may also be zero


def read(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_runs_and_prints_what_is_shown(page, tmp_path, monkeypatch):
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
            exec(compile("\n" * line + code, str(page), "exec"), vars(module))  # with the line numbers of the page
        printed = output.getvalue()
    assert not printed, f"the page does not show what its last block prints, {printed!r}"


def assert_prints(printed: str, shown: str) -> None:
    message = f"the page shows\n{shown}\nbut the code prints\n{printed}"
    assert NUMBER.sub(r"\1#", printed).split() == NUMBER.sub(r"\1#", shown).split(), message
    for (rough, number), (_, expected) in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        low, high = sorted([float(number), float(expected)])
        near = high <= 10 * low or high < ROUNDING if rough else float(number) == pytest.approx(float(expected), rel=1e-2)
        assert near, message


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    prose = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in LINK.findall(prose):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def sections(page: str) -> dict[str, tuple[str, list[str]]]:
    """Number of a section -> its prose and its code blocks; "" is the part before the first section."""
    parts = re.split(r"^(?=## )", read(page), flags=re.MULTILINE)
    numbers = [re.match(r"## (\d+)\. |", part)[1] or "" for part in parts]
    return {number: (ANY_BLOCK.sub("", part), ANY_BLOCK.findall(part)) for number, part in zip(numbers, parts, strict=True)}


def test_the_korean_tutorial_is_a_translation_of_the_english_one():
    """The code is the same, and below each heading is a digest of the English prose that was translated."""
    english, korean = sections("autograd.md"), sections("ko/autograd.md")
    assert list(korean) == list(english)
    each_other, outdated = {ROOT / "docs" / "autograd.md", ROOT / "docs" / "ko" / "autograd.md"}, []
    for number, (prose, code) in english.items():
        translation, same_code = korean[number]
        where = f"docs/ko/autograd.md, {f'section {number}' if number else 'before section 1'}"
        assert same_code == code, f"{where}: its blocks differ from those of docs/autograd.md"
        targets = [{(ROOT / "docs" / target).resolve() for target in LINK.findall(prose)} - each_other]
        targets += [{(ROOT / "docs" / "ko" / target).resolve() for target in LINK.findall(translation)} - each_other]
        assert targets[0] == targets[1], f"{where}: its links differ from those of docs/autograd.md"
        mark = f"<!-- en: {hashlib.sha256(' '.join(prose.split()).encode()).hexdigest()[:8]} -->"
        if translation.splitlines()[1] != mark:
            outdated.append(f"{where}: the English text has changed; translate it again, then write {mark} below the heading")
    assert not outdated, "\n".join(["", *outdated])


@pytest.mark.parametrize(
    ("page", "question"), [("autograd.md", "**Predict, then run.** "), ("ko/autograd.md", "**예측한 뒤 실행하세요.** ")]
)
def test_each_section_of_the_tutorial_asks_one_question_before_a_block(page, question):
    _, *numbered = re.split(r"^(?=## )", read(page), flags=re.MULTILINE)
    asked = [re.findall(rf"^{re.escape(question)}(?:.+\n)+\n```python$", part, re.MULTILINE) for part in numbered]
    assert [part.splitlines()[0] for part, found in zip(numbered, asked, strict=True) if len(found) != 1] == []
    assert read(page).count(question) == len(numbered) == 34


def test_the_figures_of_the_tutorial_are_those_of_gradients_py():
    shown = set(re.findall(r"\]\(gradients/(\w+)\.svg\)", read("autograd.md")))
    files = {path.stem: path for path in (ROOT / "docs" / "gradients").iterdir()}
    assert shown == files.keys() and shown - {"scene_1"} == PICTURES
    assert all(path.stat().st_size < 150_000 for path in files.values())


def test_the_commands_of_the_comparisons_are_valid():
    lines = re.findall(r"^python scripts/compare.py (.*)", read("comparisons.md"), re.MULTILINE)
    assert len(lines) > 5 and all(len(config.load("compare", shlex.split(line)).variants) > 1 for line in lines)


@pytest.mark.parametrize("study", sorted(path.stem for path in (ROOT / "configs" / "study").glob("*.yaml")))
def test_every_study_is_valid(study):
    needed = ["parameters.encoder=folder"] if study == "words" else []
    assert len(config.load("compare", [f"study={study}", *needed]).variants) > 1


def test_the_optimizers_are_compared_with_the_same_number_of_steps():
    study = config.load("compare", ["study=optimizers"])
    settings = [config.load("train", variant) for variant in study.variants.values()]
    targets = {each.optimizer.target for each in settings}
    assert {f"torch.optim.{name}" for name in ("SGD", "Adam", "RMSprop", "AdamW")} <= targets
    assert study.budget.steps > 0 and study.budget.seconds is None


def test_wrong_output_is_noticed():
    assert_prints("a 0.123\n", "a  0.1229\n")
    for shown in ("a 0.2", "b 0.123"):
        with pytest.raises(AssertionError):
            assert_prints("a 0.123", shown)
    assert_prints("~3e-07 ~2 ~0e+00", "~9e-07 ~0.5 ~1e-16")
    for printed, shown in (("~2", "~0.19"), ("2", "~2"), ("~0", "~0.1")):
        with pytest.raises(AssertionError):
            assert_prints(printed, shown)
