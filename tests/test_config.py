"""The way from a command line to a checked config and back to an exit code: nothing mistyped gets through."""

import contextlib
import copy
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import ReadonlyConfigError

from tests.factory import FEATURES, make_policy, spec
from vla_mini import config
from vla_mini.autograd.norms import components
from vla_mini.config.check import conform
from vla_mini.config.compose import compose, configs_folder, groups_of
from vla_mini.config.schemas import SCHEMAS, Component

REQUIRED = {
    "train": [],
    "collect": ["output=DIR"],
    "evaluate": ["policy=DIR"],
    "infer": ["policy=DIR", "image=FILE", "instruction=go", "state=[0,0,0,0]"],
    "gradients": ["policy=DIR"],
    "doctor": [],
    "compare": ["action=regression,flow", "budget.steps=400"],
}


def never(cfg):
    raise AssertionError("a refused command must not be run")


@pytest.fixture
def refusal(capsys, tmp_path, monkeypatch):
    """Runs a command that is to be refused; returns its one line on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert config.run(name, arguments, never) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.startswith(f"{name}: "), (out, err)
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        return err

    return run


@pytest.fixture
def configs(tmp_path, monkeypatch) -> Path:
    """A copy of configs/ to spoil."""
    folder = tmp_path / "configs"
    shutil.copytree(configs_folder(), folder)
    monkeypatch.setattr("vla_mini.config.compose.configs_folder", lambda: folder)
    return folder


# ---------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("name", "arguments", "named"),
    [
        ("train", ["sed=1"], ["'sed'", "'seed'"]),
        ("train", ["+sed=1"], ["'sed'", "'seed'"]),
        ("train", ["experimnt=toy_pick"], ["experimnt", "'experiment'"]),
        ("train", ["experiment=toy_pik"], ["experiment=toy_pik", "'toy_pick'"]),
        ("train", ["vision=conw"], ["vision=conw", "'conv'"]),
        ("train", ["optimizer=sdg"], ["optimizer=sdg", "'sgd'"]),
        ("train", ["logger=[csv,wandbb]"], ["logger=[csv,wandbb]", "'wandb'"]),
        ("train", ["lr=0.1"], ["'lr'", "'optimizer.lr'"]),
        ("train", ["max_steps=10"], ["'max_steps'", "'trainer.max_steps'"]),
        ("train", ["optimizer.learning=1"], ["optimizer.learning", "weight_decay"]),
        ("train", ["optimizer.lr=fast"], ["optimizer.lr='fast'", "a number"]),
        ("train", ["optimizer.lr=true"], ["optimizer.lr=true", "a number"]),
        ("train", ["optimizer.lr=nan"], ["optimizer.lr=nan", "a number"]),
        ("train", ["optimizer.betas=[0.9]"], ["optimizer.betas=[0.9]", "list of 2"]),
        ("train", ["optimizer.params=[1]"], ["optimizer.params", "no setting"]),
        ("train", ["optimizer._target_=os.system"], ["'os.system'", "torch.optim"]),
        ("train", ["optimizer._target_=torch.optim.AdamWW"], ["'torch.optim.AdamWW'", "'AdamW'"]),
        ("train", ["trainer.max_steps=ten"], ["trainer.max_steps='ten'", "an integer"]),
        ("train", ["trainer.max_steps=1.5"], ["trainer.max_steps=1.5", "an integer"]),
        ("train", ["trainer.max_steps=0"], ["trainer.max_steps=0", "at least 1"]),
        ("train", ["trainer.max_steps=10,20"], ["trainer.max_steps=10,20", "several values"]),
        ("train", ["trainer.max_step=10"], ["trainer.max_step", "'max_steps'"]),
        (
            "train",
            ["language=huggingface", "language.noise=1", "freeze=[language]"],
            ["language.noise=1 with freeze=[language]"],
        ),
        ("train", ["language=huggingface", "language.noise=1", "lora.targets=[trunk]"], ["lora.also_train=[language]"]),
        (
            "train",
            ["language=huggingface", "language.path=a", "language.config.hidden_size=8"],
            ["config.hidden_size=8", "path=a"],
        ),
        ("train", ["ensemble=0.1", "execute=8"], ["ensemble=0.1", "execute=8"]),
        ("train", ["trainer.precision=bf16-mixd"], ["'bf16-mixd'", "'bf16-mixed'"]),
        ("train", ["trainer.callbacks=[]"], ["trainer.callbacks", "no setting"]),
        ("train", ["trainer.devices=0"], ["trainer.devices=0", "at least 1"]),
        ("train", ["trainer.num_nodes=2"], ["trainer.num_nodes=2 is not 1"]),
        ("train", ["trainer.strategy=dpp"], ["trainer.strategy='dpp'", "'ddp'"]),
        ("train", ["trainer.strategy=ddp_spawn"], ["trainer.strategy='ddp_spawn'", "ddp_find_unused_parameters_true"]),
        ("train", ["trainer=1"], ["trainer=1"]),
        ("train", ["schedule.decay=cosin"], ["schedule.decay='cosin'", "'cosine'"]),
        ("train", ["evaluation.episodes=0"], ["evaluation.episodes=0", "at least 1"]),
        ("train", ["vision.width=four"], ["vision.width='four'", "an integer"]),
        ("train", ["augmentation=defalt"], ["augmentation=defalt", "'default'"]),
        ("train", ["augmentation=default", "augmentation.draws=0"], ["augmentation.draws=0", "at least 1"]),
        ("train", ["augmentation=default", "augmentation.transforms.colour.hew=0.1"], ["colour.hew", "'hue'"]),
        ("train", ["augmentation=default", "augmentation.transforms.shift.size=[9,9]"], ["shift.size=[9, 9]", "no setting"]),
        ("train", ["augmentation=default", "augmentation.transforms.shitf.padding=1"], ["shitf._target_=null"]),
        ("train", ["history=0"], ["history=0", "at least 1"]),
        ("train", ["vision.widht=64"], ["vision.widht", "'width'"]),
        ("train", ["vision.image_size=[64,64]"], ["vision.image_size", "no setting"]),
        ("train", ["vision._target_=vla_mini.vision.conv.ConvVison"], ["ConvVison", "'ConvVision'"]),
        ("train", ["vision._target_=vla_mini.x.os.system"], ["'vla_mini.x.os.system'", "vla_mini.vision"]),
        ("train", ["vision._target_=vla_mini.vision.conv.nn.Module"], ["vla_mini.vision"]),
        ("train", ["vision._target_=vla_mini.vision.conv.Tensor"], ["vla_mini.vision"]),
        ("train", ["freeze=vision"], ["freeze='vision'", "a list"]),
        ("train", ["freeze=[1]"], ["freeze[0]=1", "text"]),
        ("train", ["unfreeze_at=5"], ["unfreeze_at=5", "a group of settings"]),
        ("train", ["unfreeze_at.vision=0"], ["unfreeze_at.vision=0", "at least 1"]),
        ("train", ["unfreeze_at.trunk.queries=5"], ["unfreeze_at.trunk={'queries': 5}", "an integer"]),
        ("train", ["unfreeze_at.vision=5", "freeze=[vision]"], ["freeze=[vision]", "unfreeze_at.vision=5"]),
        ("train", ["unfreeze_at={trunk.queries:400}"], ["unfreeze_at.trunk.queries=400", "trainer.max_steps=400"]),
        ("train", ["schedule.multipliers.visoin=0.1"], ["'schedule.multipliers.visoin'", "'vision'"]),
        ("train", ["schedule.multipliers.vision=fast"], ["schedule.multipliers.vision='fast'", "a number"]),
        ("train", ["schedule.multipliers.vision=0"], ["schedule.multipliers.vision=0", "freeze=[vision]"]),
        ("train", ["lora.target=[trunk]"], ["'lora.target'", "'targets'"]),
        ("train", ["lora.rank=0"], ["lora.rank=0", "at least 1"]),
        ("train", ["lora.targets=[trunk]", "lora.alpha=0"], ["lora.alpha=0", "above 0"]),
        ("train", ["lora.targets=[trunk]", "lora.dropout=1"], ["lora.dropout=1", "below 1"]),
        ("train", ["lora.targets=[trunk]", "lora.save=merge"], ["lora.save='merge'", "'merged'"]),
        ("train", ["lora.save=apart"], ["lora.save=apart", "lora.targets=[...]"]),
        ("train", ["lora.also_train=[action]"], ["lora.also_train=['action']", "lora.targets=[...]"]),
        ("train", ["ema.decay=1"], ["ema.decay=1.0", "0.999"]),
        ("train", ["ema.decay=0"], ["ema.decay=0.0", "0.999"]),
        ("train", ["logger.mode=online"], ["logger.mode=online", "logger=wandb"]),
        ("train", ["logger=wandb", "logger.mode=onlin"], ["logger.mode='onlin'", "'online'"]),
        ("train", ["execute=9"], ["execute=9", "data.horizon=8"]),
        ("train", ["seed=-1"], ["seed=-1"]),
        ("train", ["seed=???"], ["seed is required"]),
        ("train", ["seed=${sed}"], ["sed"]),
        ("train", ["seed={a: 1}"], ["seed"]),
        ("train", ["data.keyframe=x"], ["data.keyframe='x'", "a group of settings"]),
        ("train", ["seed=f(x"], ["seed=f(x"]),
        ("train", ["~seed"], ["'~seed'", "key=value"]),
        ("train", ["toy_pick"], ["'toy_pick'", "key=value"]),
        ("train", ["=1"], ["'=1'"]),
        ("train", ["--multirun", "seed=1"], ["'--multirun'"]),
        ("train", ["-m"], ["'-m'"]),
        ("train", ["--cfg", "jobb"], ["'--cfg'"]),
        ("train", ["hydra.rum.dir=x"], ["'hydra.rum.dir'", "'hydra.run.dir'"]),
        ("infer", [], ["policy is required"]),
        ("infer", ["policy=a", "image=b", "instruction=c", "state=0"], ["state=0", "a list"]),
        ("infer", ["policy=a", "image=b", "instruction=c", "state=[a,0]"], ["state[0]='a'", "a number"]),
        ("infer", ["policy=a", "image=b", "instruction=c", "state=[0]", "mode=no_grd"], ["'no_grd'", "'no_grad'"]),
        ("infer", ["polcy=a"], ["'polcy'", "'policy'"]),
        ("infer", ["hydra.run.dir=x"], ["hydra.run.dir=x"]),
        ("gradients", ["policy=a", "vision=conv"], ["vision=conv"]),
        ("gradients", ["experiment=toy_pick", "sample=6"], ["'sample'", "'samples'"]),
        ("doctor", ["vison=patch"], ["'vison'", "'vision'"]),
        ("doctor", ["experiment=toy_pik"], ["experiment=toy_pik", "'toy_pick'"]),
        ("doctor", ["outptu=a"], ["'outptu'", "'output'"]),
        ("doctor", ["execute=9"], ["execute=9", "data.horizon=8"]),
        ("evaluate", ["policy=a", "episodes=0"], ["episodes=0", "at least 1"]),
        ("collect", ["output=a", "episodes=none"], ["episodes='none'", "an integer"]),
        ("train", ["data.keyframe.closes=1"], ["data.keyframe.closes=1", "text"]),
        ("train", ["data.keyframe=[x,y]"], ["cannot set data.keyframe=[x,y]"]),
        ("train", ["data.horizon=0"], ["data.horizon=0", "at least 1"]),
        ("collect", ["output=a", "env=toy_pik"], ["env=toy_pik", "'toy_pick'"]),
        ("train", ["blind=[image]"], ["blind[0]='image'", "'images'"]),
        ("compare", [], ["nothing to compare", "action=regression,flow"]),
        ("compare", ["action=regression,flow"], ["no budget", "budget.steps=400"]),
        ("compare", ["study=heads", "budget.steps=400"], ["budget.steps=400", "budget.seconds=300", "null"]),
        ("compare", ["action=regression,flow", "budget.steps=0"], ["budget.steps=0", "at least 1"]),
        ("compare", ["action=regression,flow", "budget.seconds=0"], ["budget.seconds=0"]),
        ("compare", ["action=regression,flow", "budget.stps=4"], ["'budget.stps'", "'steps'"]),
        ("compare", ["study=hads"], ["study=hads", "'heads'"]),
        ("compare", ["study=heads", "sedes=[1]"], ["'sedes'", "'seeds'"]),
        ("compare", ["study=heads", "evaluation.selection_episodes=1,2"], ["selection_episodes", "same scenes"]),
        ("compare", ["study=heads", "seeds=[]"], ["seeds=[]"]),
        ("compare", ["study=heads", "seeds=[1,1]"], ["seeds=[1, 1]", "once"]),
        ("compare", ["study=heads", "seed=1"], ["seed=1", "seeds=[0,1]"]),
        ("compare", ["study=heads", "trainer.max_steps=4"], ["trainer.max_steps=4", "budget.steps=400"]),
        ("compare", ["study=heads", "evaluation.every_n_steps=4"], ["every_n_steps=4", "budget.selections=20"]),
        ("compare", ["study=heads", "hydra.run.dir=a"], ["hydra.run.dir=a", "output=DIR"]),
        ("compare", ["study=heads", "base=[seed=1]"], ["base=[seed=1]", "experiment=toy_pick"]),
        ("compare", ["study=heads", "action=flow"], ["regression and bins", "same settings"]),
        ("compare", ["study=heads", "variants.x=action=flwo"], ["variant x", "action=flwo", "'flow'"]),
        ("compare", ["study=heads", "variants.x=vision=conv vision.widht=3"], ["variant x", "'vision.widht'", "'width'"]),
        ("compare", ["study=heads", "variants.x='"], ["variants.x='", "quotation"]),
        ("compare", ["study=heads", "variants=4"], ["variants=4", "variants.NAME"]),
        ("compare", ["study=heads", "evaluation.seed=0,1"], ["evaluation.seed", "same scenes"]),
        ("compare", ["action=regression,flwo", "budget.steps=40"], ["variant flwo", "action=flwo", "'flow'"]),
        ("compare", ["optimizer.lr=1,fast", "budget.steps=40"], ["variant lr=fast", "optimizer.lr='fast'"]),
        ("compare", ["study=words"], ["parameters.encoder is required"]),
        ("compare", ["study=words", "parameters.encodr=DIR"], ["parameters.encoder is required"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value and "=" in value[0] else None,
)
def test_a_mistake_on_the_command_line_is_one_clear_line(refusal, name, arguments, named):
    line = refusal(name, *arguments)
    for words in named:
        assert words in line, line


def test_a_command_with_an_experiment_holds_what_train_would_be_told():
    found = compose("doctor", ["action=flow", "seed=3", "data.root=a,b", "output=out"])
    assert found.settings == {"experiment": "toy_pick", "output": "out"}
    assert found.training == compose("train", ["experiment=toy_pick", "action=flow", "seed=3", "data.root=a,b"]).settings
    own = compose("gradients", ["experiment=toy_pick_smoke", "seed=3", "samples=6", "vision=patch"])
    assert own.settings["samples"] == 6 and own.settings["seed"] == own.training["seed"] == 3
    assert own.training["vision"]["_target_"].endswith("PatchVision") and own.training["trainer"]["max_steps"] == 4
    assert compose("gradients", ["policy=a", "seed=3"]).training is None


# ---------------------------------------------------------------------------------------------------- YAML files


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("# @package _global_\ntraner: {max_steps: 1}\n", ["'traner'", "'trainer'"]),
        ("# @package _global_\ntrainer: {max_step: 1}\n", ["'trainer.max_step'", "'max_steps'"]),
        ("# @package _global_\ntrainer: {max_steps: ten}\n", ["trainer.max_steps='ten'", "an integer"]),
        ("# @package _global_\nseed: 'four'\n", ["seed='four'", "an integer"]),
        ("# @package _global_\ntrainer: 5\n", ["trainer"]),
        ("# @package _global_\nseed: ${sed}\n", ["sed"]),
        ("# @package _global_\nseed: ${eval:1+1}\n", ["eval"]),
        ("# @package _global_\ndefaults:\n  - override /vision: conw\n", ["vision=conw", "'conv'"]),
        ("# @package _global_\nseed: 1\nseed: 2\n", ["seed"]),
        ("# @package _global_\nseed: [1\n", ["spoilt.yaml"]),
        ("trainer: {max_steps: 1}\n", ["spoilt.yaml", "# @package _global_"]),
        ("# @package global\ntrainer: {max_steps: 1}\n", ["spoilt.yaml", "# @package _global_"]),
        ("# A comment first.\n\nseed: 1 # @package _global_\n", ["spoilt.yaml", "# @package _global_"]),
    ],
)
def test_a_mistake_in_an_experiment_file_is_one_clear_line(refusal, configs, text, named):
    (configs / "experiment/spoilt.yaml").write_text(text)
    line = refusal("train", "experiment=spoilt")
    for words in named:
        assert words in line, line


def every_variant() -> list[tuple[str, str]]:
    """(command, group=variant) for all that configs/ offers, and (command, "") for the defaults alone."""
    commands = [(name, "") for name in SCHEMAS]
    groups = [("train", group) for group in groups_of("train")] + [("compare", "study")]
    return commands + [(name, f"{group}={variant}") for name, group in groups for variant in groups_of(name)[group]]


def told_so(name: str, choice: str) -> list[str]:
    """The arguments with which a command is whole, and takes the variant `choice`."""
    if choice.startswith("study="):
        return [choice, "parameters.encoder=DIR"]
    return [*REQUIRED[name], *([choice] if choice else [])]


def nodes(tree: dict, path: tuple = ()) -> list[tuple]:
    """The path of every key within, outermost first."""
    found = []
    for key, value in tree.items():
        found.append((*path, key))
        found += nodes(value, (*path, key)) if isinstance(value, dict) else []
    return found


def at(tree: dict, path: tuple) -> dict:
    for key in path:
        tree = tree[key]
    return tree


@pytest.mark.parametrize(("name", "choice"), every_variant(), ids=lambda value: value or "defaults")
def test_every_shipped_config_passes_and_no_mutation_of_it_does(name, choice):
    whole = compose(name, told_so(name, choice)).settings
    checked = conform(copy.deepcopy(whole), SCHEMAS[name])
    assert set(whole) <= set(checked)
    for path in nodes(whole):
        *parents, key = path
        if is_free(parents):
            continue
        for mutate in (misspelt, of_wrong_type, moved_to_the_top, moved_down):
            spoilt = copy.deepcopy(whole)
            if mutate(spoilt, tuple(parents), key):
                with pytest.raises(ValueError, match=re.escape(key[:-1])) as refused:
                    conform(spoilt, SCHEMAS[name])
                assert "\n" not in str(refused.value)


def is_free(parents: list[str]) -> bool:
    """Whether any name is right there."""
    named = parents[:1] in (["variants"], ["parameters"]) or parents[-1:] == ["transforms"]  # by the user
    return named or "config" in parents  # another library's: looked at when the model is made (tests/test_hub.py)


CONFIGS = sorted(path.relative_to(configs_folder()) for path in configs_folder().rglob("*.yaml"))


def spoilt_files(path: Path) -> Iterator[str]:
    """The texts of a shipped file with one mistake in it, each key in turn."""
    text = (configs_folder() / path).read_text()
    comments = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    whole = yaml.safe_load(text) or {}
    for *parents, key in nodes(whole):
        if not is_free(parents):
            for mutate in (misspelt, of_wrong_type, moved_to_the_top, moved_down):
                spoilt = copy.deepcopy(whole)
                if mutate(spoilt, tuple(parents), key):
                    yield comments + yaml.safe_dump(spoilt)


def refuses(configs: Path, path: Path, text: str) -> None:
    """The mistake is refused in one line; unless what is read later, or said, takes its place."""
    name = "compare" if path.parent.name == "study" else "train" if path.parent.name else path.stem
    arguments = told_so(name, f"{path.parent.name}={path.stem}" if path.parent.name else "")
    kept, right = (configs / path).read_text(), compose(name, arguments).settings
    (configs / path).write_text(text)
    try:
        config.load(name, arguments)
        assert compose(name, arguments).settings == right, text
    except ValueError as refusal:
        assert "\n" not in str(refusal)
    finally:
        (configs / path).write_text(kept)


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_a_mistake_in_a_file_on_the_disk_is_refused(configs, path):
    texts = list(spoilt_files(path))
    if texts:
        refuses(configs, path, random.Random(str(path)).choice(texts))


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_mistake_in_a_file_on_the_disk_is_refused(configs, path):
    for text in spoilt_files(path):
        refuses(configs, path, text)


def misspelt(tree: dict, parents: tuple, key: str) -> bool:
    at(tree, parents)[key[:-1] + "qz"] = at(tree, parents)[key]
    return True


def of_wrong_type(tree: dict, parents: tuple, key: str) -> bool:
    value = at(tree, parents)[key]
    at(tree, parents)[key] = "four" if type(value) in (int, float, bool, list, dict) else {"four": [4]}
    return True


def moved_to_the_top(tree: dict, parents: tuple, key: str) -> bool:
    if parents:
        tree[key] = at(tree, parents).pop(key)
    return bool(parents)


def moved_down(tree: dict, parents: tuple, key: str) -> bool:
    at(tree, parents)["deeper"] = {key: at(tree, parents)[key]}
    return True


def test_an_integer_for_a_number_is_no_mistake_and_becomes_one():
    cfg = config.load("train", ["optimizer.lr=1"])
    assert cfg.optimizer.lr == 1.0 and isinstance(cfg.optimizer.lr, float)


def test_a_setting_of_the_constructor_that_yaml_does_not_mention_is_welcome():
    assert config.load("train", ["optimizer=adamw", "optimizer.amsgrad=true"]).optimizer.amsgrad is True


def test_components_are_those_of_a_policy():
    policy = make_policy(features=FEATURES._replace(cameras=("top", "wrist")), backbone_action=spec("action", "bins"))
    assert set(components(policy)) == set(get_args(Component))


def test_two_loggers_at_once():
    cfg = config.load("train", ["logger=[csv,wandb]", "logger.mode=online"])
    assert cfg.logger.csv and cfg.logger.wandb and cfg.logger.mode == "online"


def test_an_experiment_overrides_the_groups_and_the_command_line_overrides_it(configs):
    (configs / "experiment/mine.yaml").write_text("# @package _global_\ntrainer: {max_steps: 7}\nseed: 3\n")
    cfg = config.load("train", ["experiment=mine", "seed=4"])
    assert (cfg.trainer.max_steps, cfg.seed) == (7, 4)


def test_without_configs_the_line_says_what_to_do(refusal, monkeypatch, tmp_path):
    monkeypatch.setattr("vla_mini.config.compose.__file__", str(tmp_path / "site-packages/vla_mini/config/compose.py"))
    assert "pip install -e ." in refusal("infer", "policy=a")


# -------------------------------------------------------------------------------------------------- comparisons


def told(*arguments: str) -> dict[str, list[str]]:
    return OmegaConf.to_container(config.load("compare", [*arguments, "budget.steps=40", "budget.selections=2"]).variants)


def test_each_value_of_a_setting_is_a_variant():
    assert told("experiment=toy_pick", "action=regression,flow") == {
        "regression": ["experiment=toy_pick", "action=regression"],
        "flow": ["experiment=toy_pick", "action=flow"],
    }
    assert list(told("optimizer.lr=1e-3,0.01", "freeze=[],[vision]")) == [
        f"lr={rate} freeze={frozen}" for rate in (0.001, 0.01) for frozen in ("[]", "[vision]")
    ]
    rates = told("optimizer=adam", "optimizer.lr=1e-3,3e-3")
    assert rates["lr=0.003"] == ["optimizer=adam", "optimizer.lr=0.003"]


def test_variants_that_differ_in_more_have_names():
    variants = told("variants.one=action=flow", 'variants.two=action=flow language.max_words="16"', "logger=[csv]")
    assert variants == {
        "one": ["action=flow", "logger=[csv]"],
        "two": ["action=flow", "language.max_words=16", "logger=[csv]"],  # split as by the shell
    }


def test_the_command_line_overrides_a_study_and_may_leave_variants_out():
    variants = told("study=heads", "budget.seconds=null", "variants.bins=null", "action.hidden=64", "experiment=toy_pick_smoke")
    assert list(variants) == ["regression", "flow", "diffusion", "fast"]
    assert variants["flow"] == ["experiment=toy_pick", "action=flow", "action.hidden=64", "experiment=toy_pick_smoke"]
    settings = config.load("train", variants["flow"])
    assert settings.action.hidden == 64 and settings.data.episodes == 16


@pytest.mark.parametrize("study", groups_of("compare")["study"])
def test_every_study_is_whole(study):
    cfg = config.load("compare", [f"study={study}", "parameters.encoder=some folder, (1)"])
    assert cfg.name == study and cfg.question.endswith("?") and len(cfg.variants) >= 2


def test_a_study_that_would_change_nothing_is_refused(refusal, configs):
    (configs / "study/mine.yaml").write_text("variants: {one: action=flow}\n")
    assert "# @package _global_" in refusal("compare", "study=mine", "budget.steps=40")


def test_a_study_asks_for_a_parameter():
    arguments = config.load("compare", ["study=words", "parameters.encoder=a, (b) c"]).variants["encoder"]
    assert config.load("train", arguments).language.path == "a, (b) c"


# --------------------------------------------------------------------------------------------------- free text


@pytest.mark.parametrize(
    "text",
    [
        "빨간 큐브를 집어",
        "a, b",
        'it\'s "here"',
        "f(x) = [1]",
        "${seed} \\${x} $HOME",
        "C:\\new\\",
        "\\",
        "",
        " ",
        "a=b",
        "{",
        "~",
    ],
)
def test_free_text_arrives_as_it_was_written(text):
    cfg = config.load("infer", [f"instruction={text}", f"policy={text}", f"image={text}", "state=[0]"])
    assert cfg.instruction == cfg.policy == cfg.image == text
    assert OmegaConf.create(OmegaConf.to_yaml(cfg)).instruction == text  # as a run's config.yaml keeps it


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: text != "???"))
@settings(max_examples=25, deadline=None)
def test_any_text_arrives_as_it_was_written(text):
    assert config.load("infer", [f"instruction={text}", "policy=a", "image=b", "state=[0]"]).instruction == text


@given(st.text("\\${}'\"(,=: a"))
@settings(max_examples=25, deadline=None)
def test_text_made_of_all_that_is_special_arrives_as_it_was_written(text):
    assert config.load("gradients", [f"policy={text}", f"data={text}"]).data == text


def test_images_of_several_cameras_are_a_list():
    cfg = config.load("infer", ["policy=a", "image=[top view.png, (2).png]", "instruction=b", "state=[0]"])
    assert cfg.image == ["top view.png", "(2).png"]


def test_null_is_no_path_but_it_is_a_text():
    cfg = config.load("gradients", ["policy=a", "data=null"])
    assert cfg.data is None
    assert config.load("infer", ["policy=a", "image=b", "instruction=null", "state=[0]"]).instruction == "null"


# ------------------------------------------------------------------------------------------------ what main gets


def test_the_config_is_resolved_read_only_and_names_the_run_folder():
    cfg = config.load("train", ["experiment=toy_pick_smoke"])
    assert re.fullmatch(r"runs/toy_pick_smoke/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", cfg.run_dir)
    assert "hydra" not in cfg and "${" not in OmegaConf.to_yaml(cfg)
    assert config.load("train", ["experiment=toy_pick_smoke"]).run_dir != cfg.run_dir
    with pytest.raises(ReadonlyConfigError):
        cfg.seed = 1


def test_a_run_can_be_put_elsewhere():
    assert config.load("train", ["hydra.run.dir=/tmp/my run, (1)"]).run_dir == "/tmp/my run, (1)"


# ---------------------------------------------------------------------------------------------- help, exit codes


def test_help_names_groups_variants_settings_and_examples_without_torch(tmp_path):
    code = (
        "import sys, vla_mini.config\n"
        "@vla_mini.config.main('train')\n"
        "def main(cfg):\n    '''Train a policy.'''\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not {'torch', 'hydra'} & set(sys.modules); raise\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Train a policy.")
    for group, variants in groups_of("train").items():
        assert re.search(rf"^  {group} +.*{variants[0]}", done.stdout, flags=re.MULTILINE), group
    for words in ("seed=0", "evaluation.episodes=", "hydra.run.dir=DIR", "scripts/train.py experiment=toy_pick"):
        assert words in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_command_has_help(name, capsys):
    assert config.run(name, ["--help", "sed=1"], never) == 0
    out = capsys.readouterr().out
    assert "settings:" in out and out.count(f"python scripts/{name}.py ") >= 3


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--cfg=job"], ["-c", "job"]])
def test_cfg_job_prints_what_was_composed(capsys, flags):
    assert config.run("gradients", [*flags, "seed=3"], never) == 0
    assert OmegaConf.create(capsys.readouterr().out).seed == 3


ARGUMENTS = ["policy=a"]  # a correct command line of gradients.py


def test_exit_code_0_and_main_gets_the_config():
    got = []
    assert config.run("gradients", ARGUMENTS, got.append) == 0
    assert got[0].policy == "a"


def raising(error: BaseException, *folders: Path):
    def main(cfg):
        for folder in folders:
            config.new_folder(folder)
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("a\nb"), "gradients: a b\n"),
        (FileNotFoundError(2, "No such file or directory", "x.png"), "gradients: x.png: No such file or directory\n"),
    ],
)
def test_a_refusal_before_work_is_exit_code_2_and_one_line(capsys, monkeypatch, error, line):
    assert config.run("gradients", ARGUMENTS, raising(error)) == 2
    assert capsys.readouterr().err == line
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert config.run("gradients", ARGUMENTS, raising(error)) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_failure_at_work_is_exit_code_1_and_empty_folders_go(capsys, tmp_path):
    assert config.run("gradients", ARGUMENTS, raising(ValueError("not finite"), tmp_path / "a/b")) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and error.endswith("\ngradients: not finite\n")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_at_work_leaves_what_was_written(tmp_path):
    def main(cfg):
        (config.new_folder(tmp_path / "a/b") / "file").write_text("kept")
        raise OSError(28, "No space left on device")

    assert config.run("gradients", ARGUMENTS, main) == 1
    assert (tmp_path / "a/b/file").read_text() == "kept"


def test_work_that_makes_its_output_in_another_way_says_when_it_starts():
    def main(cfg):
        config.start_work()
        raise OSError(28, "No space left on device")

    assert config.run("gradients", ARGUMENTS, main) == 1


def test_our_own_fault_is_exit_code_1_with_a_traceback(capsys):
    assert config.run("gradients", ARGUMENTS, raising(AssertionError("shapes"))) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_have_their_exit_codes_even_if_a_library_catches_them(capsys, number, code):
    before = signal.getsignal(number)

    def swallowing(cfg):
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            raise SystemExit(1) from None

    def finishing(cfg):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)

    assert config.run("gradients", ARGUMENTS, lambda cfg: os.kill(os.getpid(), number)) == code
    assert config.run("gradients", ARGUMENTS, swallowing) == code
    assert config.run("gradients", ARGUMENTS, finishing) == code
    assert capsys.readouterr().err == 2 * f"gradients: stopped by {signal.Signals(number).name}\n"
    assert signal.getsignal(number) == before


# ------------------------------------------------------------------------------------------------------- folders


def test_a_new_folder_is_made_once(tmp_path):
    folder = config.new_folder(tmp_path / "a/b")
    (folder / "file").write_text("mine")
    for taken in (folder, folder / "file"):
        with pytest.raises(ValueError, match=re.escape(f"{taken} exists already")):
            config.new_folder(taken)
    assert (folder / "file").read_text() == "mine"


@pytest.mark.parametrize("path", ["", "file/inside", "a/" + 300 * "n", "nul\0"])
def test_a_folder_that_cannot_be_made_is_a_users_mistake(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(ValueError, match="folder"):
        config.new_folder(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_latest_names_the_newest_run_relatively(tmp_path):
    runs = [tmp_path / f"2025-01-0{day}_00-00-00-000000" for day in (1, 2)]
    for run in runs:
        run.mkdir()
        config.point_latest(run)
    assert os.readlink(tmp_path / "latest") == runs[1].name
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [runs[0].name, runs[1].name, "latest"]


def test_latest_is_a_text_file_where_links_fail(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no links here")

    monkeypatch.setattr(os, "symlink", refuse)
    run = tmp_path / "2025-01-01_00-00-00-000000"
    run.mkdir()
    config.point_latest(run)
    assert (tmp_path / "latest").read_text().strip() == run.name


def test_a_latest_that_cannot_be_made_is_a_warning(tmp_path, monkeypatch, capsys):
    run = tmp_path / "2025-01-01_00-00-00-000000"
    (tmp_path / "latest").mkdir()
    config.point_latest(run)
    assert "latest does not name 2025-01-01_00-00-00-000000: Is a directory" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["latest"]
    config.point_latest(tmp_path / "gone" / run.name)
    assert "No such file or directory" in capsys.readouterr().err


def test_a_run_put_elsewhere_gets_no_latest_beside_it(tmp_path):
    (tmp_path / "mine").mkdir()
    config.point_latest(tmp_path / "mine")
    assert not (tmp_path / "latest").exists()
