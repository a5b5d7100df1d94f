"""README.md does what it says: its commands run (toy_pick_smoke for toy_pick), and so does its Python."""

import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from tests import test_variants
from tests.factory import CONFIGS, DEFAULTS, ROOT, command
from vla_mini import build, config

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("python scripts/")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with docs/, in which the README's commands follow one another."""
    place = tmp_path_factory.mktemp("readme")
    (place / "docs").symlink_to(ROOT / "docs")
    return place


@pytest.mark.parametrize("line", COMMANDS, ids=range(len(COMMANDS)))
def test_commands_run(place, monkeypatch, line):
    monkeypatch.chdir(place)
    if re.search("=(DIR|FILE)", line):  # the user's own weights: here, what the command is told is checked
        _, _, *arguments = shlex.split(line.partition("#")[0])
        assert {"DIR", "FILE"} & {config.load("train", arguments)[part].get("path") for part in ("vision", "language")}
        return
    # The default experiment is toy_pick: said or not, the smoke experiment stands in for it.
    line = line.replace("experiment=toy_pick", "").replace("runs/toy_pick/", "runs/toy_pick_smoke/")
    line = line.replace("episodes=200", "episodes=4").replace("unfreeze_at.vision=200", "unfreeze_at.vision=2")
    line = line.replace("trainer.max_steps=800", "trainer.max_steps=6")
    if "init_from" in line:  # the parts that the first run had
        line = line.replace("toy_pick_smoke/latest", f"toy_pick_smoke/{min(Path('runs/toy_pick_smoke').glob('2*')).name}")
    _, script, *arguments = shlex.split(line.partition("#")[0])
    name = script.removeprefix("scripts/").removesuffix(".py")
    if name == "compare":  # many runs, of which tests/comparison makes some: here, what they are told is checked
        assert len(config.load(name, arguments).variants) > 1
        return
    new = name in ("train", "doctor") and not any(argument.startswith("resume=") for argument in arguments)
    assert command(name, *(["experiment=toy_pick_smoke"] if new else []), *arguments) == 0


def test_python_runs(place, monkeypatch):
    monkeypatch.chdir(place)
    (code,) = (block for block in blocks("python") if "from_pretrained" in block)
    names: dict = {}
    exec(code.replace("runs/toy_pick/", "runs/toy_pick_smoke/"), names)
    assert names["actions"].shape == (1, 8, 4)


@pytest.fixture
def linear(monkeypatch, tmp_path):
    """The head that the README adds, as if its two files were there."""
    (code,) = (block for block in blocks("python") if "LinearHead" in block)
    module = types.ModuleType("vla_mini.action.linear")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, vars(module))
    variants = build.variants
    monkeypatch.setattr(build, "variants", lambda group: variants(group) + ["linear"] * (group == "action"))
    folder = tmp_path / "action"
    folder.mkdir()
    (folder / "linear.yaml").write_text(blocks("yaml")[0])
    for group in DEFAULTS:
        if group != "action":
            (tmp_path / group).symlink_to(CONFIGS / group)
    monkeypatch.setattr("tests.factory.CONFIGS", tmp_path)


@pytest.mark.parametrize(
    "check",
    [
        test_variants.test_shapes_and_dtypes,
        test_variants.test_gradients_reach_every_parameter,
        test_variants.test_bf16_is_close_and_losses_stay_fp32,
        test_variants.test_every_input_matters_and_padding_words_do_not,
    ],
)
def test_the_head_it_adds_keeps_the_contract(linear, check):
    check({"action": "linear"})


def test_the_head_it_adds_is_saved(linear, tmp_path):
    test_variants.test_save_load_act_gives_equal_numbers({"action": "linear"}, tmp_path)


def test_its_files_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
