"""What README.md and data/README.md show works: their commands run (toy_pick_smoke for toy_pick), and so does their Python."""

import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from tests import test_variants
from tests.factory import CONFIGS, DEFAULTS, ROOT, command
from vla_mini import config, registry


def blocks(language: str, *, page: str = "README.md") -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


LINES = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("python scripts/")]
COMMANDS = list(dict.fromkeys(LINES))  # each once


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with docs/, in which the README's commands run one after another."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "docs").symlink_to(ROOT / "docs")
    return folder


@pytest.mark.parametrize("line", COMMANDS, ids=range(len(COMMANDS)))
def test_commands_run(folder, monkeypatch, line):
    monkeypatch.chdir(folder)
    _, script, *arguments = shlex.split(line.partition("#")[0])
    name = Path(script).stem
    if re.search("=(DIR|FILE)", line):  # the user's own weights or data: only the settings are checked
        settings = config.load("train", arguments)
        paths = {settings.data.root, *(part.arguments().get("path") for part in (settings.vision, settings.language))}
        assert {"DIR", "FILE"} & paths
        return
    if name == "compare":  # many runs, some of which tests/comparison makes: only the settings are checked
        assert len(config.load(name, arguments).variants) > 1
        return
    arguments = [_small(argument) for argument in arguments if argument != "experiment=toy_pick"]
    new = name in ("train", "doctor") and not any(argument.startswith("resume=") for argument in arguments)
    assert command(name, *(["experiment=toy_pick_smoke"] if new else []), *arguments) == 0


def _small(argument: str) -> str:
    """The argument for toy_pick_smoke instead of toy_pick. `init_from` is the first run, which has the default parts."""
    smaller = {
        "episodes=200": "episodes=4",
        "unfreeze_at.vision=200": "unfreeze_at.vision=2",
        "trainer.max_steps=800": "trainer.max_steps=6",
    }
    runs = Path("runs/toy_pick_smoke")
    latest = min(runs.glob("2*")) if argument.startswith("init_from=") else runs / "latest"
    return smaller.get(argument, argument).replace("runs/toy_pick/latest", str(latest))


def test_the_korean_page_shows_the_same_commands_and_results():
    for language in ("bash", "text"):
        english, korean = ("".join(blocks(language, page=page)).splitlines() for page in ("README.md", "README.ko.md"))
        assert korean and [line for line in korean if line not in english] == []


def test_python_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (code,) = (block for block in blocks("python") if "Controller" in block)
    names: dict = {}
    exec(code.replace("runs/toy_pick/", "runs/toy_pick_smoke/"), names)
    assert names["action"].shape == (4,) and (names["terminated"] or names["truncated"])


def test_a_dataset_written_as_data_readme_shows_trains_without_an_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python", page="data/README.md")
    exec(code, {})
    (line,) = (line for line in COMMANDS if "env=none" in line)
    _, _, *arguments = shlex.split(line)
    assert command("train", "experiment=toy_pick_smoke", *arguments) == 0
    (run,) = Path("runs/toy_pick_smoke").glob("2*")
    assert (run / "policy" / "manifest.json").is_file() and (run / "report.html").is_file()


@pytest.fixture
def linear(monkeypatch, tmp_path):
    """The head that the README adds, as if its two files were there."""
    (code,) = (block for block in blocks("python") if "LinearHead" in block)
    module = types.ModuleType("vla_mini.action.linear")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, vars(module))
    variants = registry.variants
    monkeypatch.setattr(registry, "variants", lambda kind: variants(kind) + ["linear"] * (kind == "action"))
    folder = tmp_path / "action"
    folder.mkdir()
    (folder / "linear.yaml").write_text(blocks("yaml")[0])
    for kind in DEFAULTS.keys() - {"action"}:
        (tmp_path / kind).symlink_to(CONFIGS / kind)
    monkeypatch.setattr("tests.factory.CONFIGS", tmp_path)


@pytest.mark.parametrize(
    "check",
    [
        test_variants.test_shapes_and_dtypes,
        test_variants.test_gradients_reach_every_parameter,
        test_variants.test_bf16_is_close_and_losses_are_fp32,
        test_variants.test_every_input_matters_and_padding_does_not,
    ],
)
def test_the_head_that_it_adds_keeps_the_contract(linear, check):
    check({"action": "linear"})


def test_the_head_that_it_adds_is_saved(linear, tmp_path):
    test_variants.test_a_loaded_policy_acts_as_the_saved_one({"action": "linear"}, tmp_path)
