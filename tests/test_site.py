"""The documentation site: its navigation has every page of docs/, and the diagrams of docs/how_it_works.md are calls that are
really made. `make docs`, which .ci/run calls, builds it, and fails for any warning."""

import ast
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import yaml
from omegaconf import OmegaConf

import vla_mini
from tests.factory import ROOT, VARIANTS, load_script, make_policy
from vla_mini import config, envs

DOCS = ROOT / "docs"
DIAGRAM = re.compile(r'^<div class="calls" markdown>\n(.*?)^</div>', re.MULTILINE | re.DOTALL)
ITEM = re.compile(r"^( *)- (?:\[`([\w.]+)`\]\(\.\./([\w/.]+)\)|`([\w.]+)`)", re.MULTILINE)
SMALL = [
    *("trainer.max_steps=1", "evaluation.every_n_steps=0"),
    *("data.episodes=2", "data.validation_episodes=1", "data.batch_size=4"),
]


class Function(NamedTuple):
    """As its code object names it."""

    file: str
    name: str


def read_diagrams() -> dict[str, dict[Function, list[Function]]]:
    """The functions of each diagram of the page, by its heading: caller -> what it calls, in order."""
    diagrams = {}
    for section in (DOCS / "how_it_works.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        calls: dict[Function, list[Function]] = {}
        callers: list[Function] = []  # of the item that is read, from the outermost to itself
        diagram = DIAGRAM.search(section)[1]
        items = ITEM.findall(diagram)
        assert len(items) == len(re.findall(r"^ *- ", diagram, re.MULTILINE)), "an item names no function"
        for indent, name, file, library_name in items:
            function = of_library(library_name) if library_name else of_package(name, file)
            callers = [*callers[: len(indent) // 4], function]
            if len(callers) > 1:
                calls.setdefault(callers[-2], []).append(function)
        diagrams[section.partition("\n")[0]] = calls
    return diagrams


def of_package(name: str, file: str) -> Function:
    is_class = name.rpartition(".")[2][0].isupper()
    return Function(str(ROOT / file), f"{name}.__init__" if is_class else name)


def of_library(name: str) -> Function:
    code = inspect.unwrap(pkgutil.resolve_name(name)).__code__
    return Function(code.co_filename, code.co_qualname)


def trace(run: Callable[[], object], functions: set[Function]) -> list[tuple[Function, ...]]:
    """The calls of `functions` while `run` runs: the function, then those of them that are running, the newest first."""
    calls = []

    def record(frame, event, argument):
        code = frame.f_code
        if event != "call" or (code.co_filename, code.co_qualname) not in functions:
            return
        running = []
        while frame is not None:
            running.append(Function(frame.f_code.co_filename, frame.f_code.co_qualname))
            frame = frame.f_back
        calls.append(tuple(function for function in running if function in functions))

    sys.setprofile(record)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


DIAGRAMS = read_diagrams()


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> list[tuple[Function, ...]]:
    """Those of one action and of one short training, of all functions in the diagrams."""
    functions = {function for calls in DIAGRAMS.values() for called in (calls.keys(), *calls.values()) for function in called}
    controller, env = vla_mini.Controller(make_policy()), envs.make("vla_mini/ToyPick-v0")
    observation, _ = env.reset(seed=1)
    acting = trace(lambda: controller.step(observation), functions)

    script = load_script("train")
    script.finish = lambda *_: None  # evaluation and report, after the last diagram's end
    arguments = ["experiment=toy_pick_smoke", *SMALL]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(tmp_path_factory.mktemp("run"))
        training = trace(lambda: config.run("train", arguments, script.main.__wrapped__), functions)
    return acting + training


@pytest.mark.parametrize("path", DIAGRAMS)
def test_diagrams_are_the_calls_that_are_made(calls, path):
    expected = DIAGRAMS[path]
    shown = {function for called in (expected.keys(), *expected.values()) for function in called}
    outermost = next(iter(expected))
    made: dict[Function, list[Function]] = {}
    for called, *running in calls:
        caller = next((function for function in running if function in shown), None)
        if outermost in running and called in expected.get(caller, ()):
            made.setdefault(caller, []).append(called)
    assert len(shown) >= 15
    assert {caller: list(dict.fromkeys(called)) for caller, called in made.items()} == expected


def test_the_examples_of_parts_have_the_settings_of_their_files():
    """In docs/parts.md, whose Python tests/test_docs.py runs: a YAML file has the defaults of its class, under its address."""
    text = (DOCS / "parts.md").read_text(encoding="utf-8")
    defined = [ast.parse(code).body for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]
    classes = {node.name: node for body in defined for node in body if isinstance(node, ast.ClassDef)}
    checked = set()
    for kind, name, code in re.findall(r"^```yaml\n# configs/(\w+)/(\w+)\.yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        settings = OmegaConf.to_container(OmegaConf.create(code))
        settings = settings[name] if kind == "auxiliary" else settings
        module, _, cls = settings.pop("_target_", "").rpartition(".")
        if kind == "env" or module == "torch.optim":
            continue
        assert module == f"vla_mini.{'training' if kind == 'optimizer' else kind}.{name}"
        (init,) = (node for node in classes[cls].body if getattr(node, "name", "") == "__init__")
        defaults = map(ast.literal_eval, init.args.kw_defaults)
        assert {argument.arg: value for argument, value in zip(init.args.kwonlyargs, defaults, strict=True)} == {
            key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
        }
        checked.add(kind)
    assert checked == {"vision", "language", "trunk", "auxiliary", "optimizer"}


def test_the_quick_start_says_what_there_is():
    """Its commands are among README's, which tests/test_readme.py runs; its table has all variants."""
    text = (DOCS / "index.md").read_text(encoding="utf-8").replace("\\\n    ", "")
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    commands = re.findall(r"^(?:python|make) .*", text, re.MULTILINE)
    known = {line.partition("#")[0].strip() for line in readme}
    assert len(commands) == 5 and {command.partition("#")[0].strip() for command in commands} <= known
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|", text, re.MULTILINE)
    assert {kind: sorted(re.findall(r"`(\w+)`", names)) for kind, names in rows} == VARIANTS


def test_the_navigation_has_every_page():
    def pages(node):
        return [node] if isinstance(node, str) else [page for each in node for item in each.values() for page in pages(item)]

    files = [path.relative_to(DOCS) for path in DOCS.rglob("*.md")]
    # Those in Korean are added by docs/assets/hooks.py.
    found = sorted(path.as_posix() for path in files if not {"ko", "node_modules"} & {*path.parts})
    assert sorted(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])) == found
