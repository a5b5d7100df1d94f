"""From a command line to typed settings and an exit code: every mistake is refused in one line before anything is built."""

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
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.factory import FEATURES, ROOT, make_policy, spec
from vla_mini import config
from vla_mini.config.command import compose_command, validate
from vla_mini.config.sources import configs_folder, groups_of
from vla_mini.settings import Component

REQUIRED = {
    "train": [],
    "collect": ["output=DIR"],
    "evaluate": ["policy=DIR"],
    "convert": ["policy=DIR", "output=DIR"],
    "infer": ["policy=DIR", "image=FILE", "instruction=go", "state=[0,0,0,0]"],
    "serve": ["policy=DIR"],
    "play": ["policy=DIR"],
    "export": ["policy=DIR", "output=DIR"],
    "gradients": ["policy=DIR"],
    "doctor": [],
    "browse": ["data=DIR", "output=DIR"],
    "compare": ["action=regression,flow", "budget.steps=400"],
}


def never(settings):
    raise AssertionError("a refused command must not be run")


@pytest.fixture
def refusal(capsys, tmp_path, monkeypatch):
    """Runs a command that has to be refused, and returns its one line on stderr."""
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
    """A copy of configs/ that a test may damage."""
    folder = tmp_path / "configs"
    shutil.copytree(configs_folder(), folder)
    for module in ("compose", "help", "sources"):
        monkeypatch.setattr(f"vla_mini.config.{module}.configs_folder", lambda: folder)
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
        ("train", ["optimizer.lrr=1"], ["'optimizer.lrr'", "did you mean 'optimizer.lr'?"]),
        ("train", ["optimizer.lr=nan"], ["optimizer.lr=nan", "a number"]),
        ("train", ["optimizer.betas=[0.9]"], ["optimizer.betas=[0.9]", "list of 2"]),
        ("train", ["optimizer.params=[1]"], ["unknown key 'optimizer.params'"]),
        ("train", ["optimizer._target_=os.system"], ["'os.system'", "torch.optim"]),
        ("train", ["optimizer._target_=torch.optim.AdamWW"], ["'torch.optim.AdamWW'", "'AdamW'"]),
        ("train", ["trainer.max_steps=ten"], ["trainer.max_steps='ten'", "an integer"]),
        ("train", ["trainer.max_steps=1.5"], ["trainer.max_steps=1.5", "an integer"]),
        ("train", ["trainer.max_steps=0"], ["trainer.max_steps=0", "at least 1"]),
        ("train", ["trainer.max_steps=10,20"], ["trainer.max_steps=10,20", "several values"]),
        ("train", ["trainer.max_step=10"], ["trainer.max_step", "'trainer.max_steps'"]),
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
        ("train", ["trainer.callbacks=[]"], ["unknown key 'trainer.callbacks'"]),
        ("train", ["trainer.devices=0"], ["trainer.devices=0", "at least 1"]),
        ("train", ["trainer.strategy=fsdp"], ["trainer.strategy=fsdp divides the matrices that Muon needs", "optimizer=adamw"]),
        (
            "train",
            ["trainer.strategy=fsdp", "optimizer=adamw", "compile=default"],
            ["trainer.strategy=fsdp is neither for compile nor for unfreeze_at"],
        ),
        ("train", ["trainer.num_nodes=0"], ["trainer.num_nodes=0", "at least 1"]),
        ("train", ["trainer.strategy=dpp"], ["trainer.strategy='dpp'", "'ddp'"]),
        ("train", ["trainer.strategy=ddp_spawn"], ["trainer.strategy='ddp_spawn'", "ddp_find_unused_parameters_true"]),
        ("train", ["trainer=1"], ["trainer=1"]),
        ("train", ["schedule.decay=cosin"], ["schedule.decay='cosin'", "'cosine'"]),
        ("train", ["evaluation.episodes=0"], ["evaluation.episodes=0", "at least 1"]),
        ("train", ["vision.width=four"], ["vision.width='four'", "an integer"]),
        ("train", ["augmentation=defalt"], ["augmentation=defalt", "'default'"]),
        ("train", ["augmentation=default", "augmentation.draws=0"], ["augmentation.draws=0", "at least 1"]),
        ("train", ["augmentation=default", "augmentation.transforms.colour.hew=0.1"], ["colour.hew", "colour.hue'?"]),
        ("train", ["augmentation=default", "augmentation.transforms.shift.size=[9,9]"], ["shift.size", "[9, 9]", "padding"]),
        (
            "train",
            ["augmentation=default", "augmentation.transforms.shitf.padding=1"],
            ["shitf._target_=null"],
        ),
        ("train", ["history=0"], ["history=0", "at least 1"]),
        ("train", ["vision.widht=64"], ["vision.widht", "'vision.width'"]),
        ("train", ["vision.image_size=[64,64]"], ["vision.image_size", "did you mean 'vision.input_size'?"]),
        ("train", ["vision._target_=vla_mini.vision.conv.ConvVison"], ["ConvVison", "'vla_mini.vision.conv.ConvVision'"]),
        ("train", ["vision._target_=vla_mini.x.os.system"], ["'vla_mini.x.os.system'", "vla_mini.vision"]),
        (
            "train",
            ["action._target_=FlowHead"],
            ["action._target_='FlowHead'", "did you mean 'vla_mini.action.flow.FlowHead'?"],
        ),
        ("train", ["action._target_=vla_mini.flow.FlowHead"], ["did you mean 'vla_mini.action.flow.FlowHead'?"]),
        ("train", ["action._target_=null"], ["action._target_ is missing; choose from: vla_mini.action.bins.BinsHead, "]),
        (
            "train",
            ["auxiliary=none", "auxiliary.keyframe.weight=1"],
            ["auxiliary.keyframe._target_ is missing: there is no auxiliary loss of that"],
        ),
        ("train", ["auxiliary=[keyframe,none]"], ["auxiliary=[keyframe,none]: none", "alone"]),
        ("train", ["vision._target_=vla_mini.vision.conv.nn.Module"], ["vla_mini.vision"]),
        ("train", ["vision._target_=vla_mini.vision.conv.Tensor"], ["vla_mini.vision"]),
        ("train", ["freeze=vision"], ["freeze='vision'", "a list"]),
        ("train", ["freeze=[1]"], ["freeze[0]=1", "text"]),
        ("train", ["unfreeze_at=5"], ["unfreeze_at=5", "a group of settings"]),
        ("train", ["unfreeze_at=[vision]"], ["train: unfreeze_at=[vision] is not a group of settings\n"]),
        ("train", ["schedule.multipliers=[vision]"], ["train: schedule.multipliers=[vision] is not a group of settings\n"]),
        ("train", ["freeze={vision: 1}"], ["train: freeze={vision: 1} is not a list\n"]),
        ("train", ["unfreeze_at.vision=0"], ["unfreeze_at.vision=0", "at least 1"]),
        ("train", ["unfreeze_at.trunk.queries=5"], ["unfreeze_at.trunk={queries: 5}", "an integer"]),
        ("train", ["unfreeze_at.vision=5", "freeze=[vision]"], ["freeze=[vision]", "unfreeze_at.vision=5"]),
        ("train", ["unfreeze_at={trunk.queries:400}"], ["unfreeze_at.trunk.queries=400", "trainer.max_steps=400"]),
        ("train", ["schedule.multipliers.visoin=0.1"], ["'schedule.multipliers.visoin'", "'schedule.multipliers.vision'"]),
        ("train", ["schedule.multipliers.vision=fast"], ["schedule.multipliers.vision='fast'", "a number"]),
        ("train", ["schedule.multipliers.vision=0"], ["schedule.multipliers.vision=0", "freeze=[vision]"]),
        ("train", ["lora.target=[trunk]"], ["'lora.target'", "'lora.targets'"]),
        ("train", ["lora.rank=0"], ["lora.rank=0", "at least 1"]),
        ("train", ["lora.targets=[trunk]", "lora.alpha=0"], ["lora.alpha=0", "a number above 0"]),
        ("train", ["lora.targets=[trunk]", "lora.dropout=1"], ["lora.dropout=1", "below 1"]),
        ("train", ["lora.targets=[trunk]", "lora.save=merge"], ["lora.save='merge'", "'merged'"]),
        ("train", ["lora.save=separate"], ["lora.save=separate", "lora.targets=[...]"]),
        ("train", ["lora.also_train=[action]"], ["lora.also_train=['action']", "lora.targets=[...]"]),
        ("train", ["ema.decay=1"], ["ema.decay=1", "a number below 1"]),
        ("train", ["ema.decay=0"], ["ema.decay=0", "a number above 0"]),
        ("train", ["logger.mode=online"], ["logger.mode=online", "logger=wandb"]),
        ("train", ["logger=wandb", "logger.mode=onlin"], ["logger.mode='onlin'", "'online'"]),
        ("train", ["execute=9"], ["execute=9", "data.horizon=8"]),
        ("train", ["seed=-1"], ["seed=-1"]),
        ("train", ["seed=???"], ["seed is required"]),
        ("train", ["seed=${sed}"], ["sed"]),
        ("train", ["seed={a: 1}"], ["seed"]),
        ("train", ["auxiliary.keyframe=x"], ["auxiliary.keyframe='x'", "a group of settings"]),
        (
            "train",
            ["auxiliary.keyfrme.weight=1"],
            ["auxiliary.keyfrme._target_ is missing: there is no auxiliary loss of that name here; ", "KeyframeLoss"],
        ),
        ("train", ["auxiliary.keyframe.weigth=1"], ["'auxiliary.keyframe.weigth'", "'auxiliary.keyframe.weight'"]),
        ("train", ["run_dri=x"], ["'run_dri'", "'run_dir'"]),
        ("train", ["env=none", "evaluation.further_splits=[synonyms]"], ["further_splits=['synonyms']", "env=none"]),
        ("train", ["seed=f(x"], ["seed=f(x"]),
        ("train", ["~seed"], ["'~seed'", "key=value"]),
        ("train", ["toy_pick"], ["'toy_pick'", "key=value"]),
        ("train", ["=1"], ["'=1'"]),
        ("train", ["--multirun", "seed=1"], ["'--multirun'"]),
        ("train", ["-m"], ["'-m'"]),
        ("train", ["--cfg", "jobb"], ["'--cfg'"]),
        ("train", ["hydra.rum.dir=x"], ["hydra.rum.dir=x", "'hydra.run.dir'"]),
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
        ("evaluate", ["policy=a", "ensemble=nona"], ["ensemble='nona'", "a number or none"]),
        ("evaluate", ["policy=a", "execute=0"], ["execute=0", "at least 1"]),
        ("infer", ["policy=a", "image=b", "instruction=c", "state=[0]", "num_steps=0"], ["num_steps=0", "at least 1"]),
        ("train", ["auxiliary.keyframe.closes=1"], ["auxiliary.keyframe.closes=1", "text"]),
        ("train", ["data.horizon=0"], ["data.horizon=0", "at least 1"]),
        ("collect", ["output=a", "env=toy_pik"], ["env=toy_pik", "'toy_pick'"]),
        ("train", ["ablate=[image]"], ["ablate[0]='image'", "'images'"]),
        ("compare", [], ["nothing to compare", "action=regression,flow"]),
        ("compare", ["action=regression,flow"], ["no budget", "budget.steps=400"]),
        ("compare", ["study=heads", "budget.steps=400"], ["budget.steps=400", "budget.seconds=300", "null"]),
        ("compare", ["action=regression,flow", "budget.steps=0"], ["budget.steps=0", "at least 1"]),
        ("compare", ["action=regression,flow", "budget.seconds=0"], ["budget.seconds=0", "above 0"]),
        ("compare", ["action=regression,flow", "budget.stps=4"], ["'budget.stps'", "'budget.steps'"]),
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
        (
            "compare",
            ["study=heads", "variants.x=vision=conv vision.widht=3"],
            ["variant x", "'vision.widht'", "'vision.width'"],
        ),
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


def test_a_command_with_an_experiment_holds_the_settings_of_training():
    found = config.load("doctor", ["action=flow", "seed=3", "data.root=a,b", "output=out"])
    train = config.load("train", ["experiment=toy_pick", "action=flow", "seed=3", "data.root=a,b"])
    assert (found.experiment, found.output) == ("toy_pick", "out")
    assert found.training == train.model_copy(update={"run_dir": found.training.run_dir})
    own = config.load("gradients", ["experiment=toy_pick_smoke", "seed=3", "samples=6", "vision=patch"])
    assert own.samples == 6 and own.seed == own.training.seed == 3
    assert own.training.vision.target.endswith("PatchVision") and own.training.trainer.max_steps == 4
    assert config.load("gradients", ["policy=a", "seed=3"]).training is None


# ---------------------------------------------------------------------------------------------------- YAML files


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("# @package _global_\ntraner: {max_steps: 1}\n", ["'traner'", "'trainer'"]),
        ("# @package _global_\ntrainer: {max_step: 1}\n", ["'trainer.max_step'", "'trainer.max_steps'"]),
        ("# @package _global_\ntrainer: {max_steps: ten}\n", ["trainer.max_steps='ten'", "an integer"]),
        ("# @package _global_\nunfreeze_at: [vision]\n", ["experiment/damaged", "a list where a group of settings is needed"]),
        ("# @package _global_\nseed: 'four'\n", ["seed='four'", "an integer"]),
        ("# @package _global_\ntrainer: 5\n", ["trainer"]),
        ("# @package _global_\nseed: ${sed}\n", ["sed"]),
        ("# @package _global_\nseed: ${eval:1+1}\n", ["eval"]),
        ("# @package _global_\ndefaults:\n  - override /vision: conw\n", ["vision=conw", "'conv'"]),
        ("# @package _global_\nseed: 1\nseed: 2\n", ["seed"]),
        ("# @package _global_\nseed: [1\n", ["damaged.yaml"]),
        ("trainer: {max_steps: 1}\n", ["damaged.yaml", "# @package _global_"]),
        ("# @package global\ntrainer: {max_steps: 1}\n", ["unknown key 'global'"]),
        ("# A comment first.\n\nseed: 1 # @package _global_\n", ["damaged.yaml", "# @package _global_"]),
    ],
)
def test_a_mistake_in_an_experiment_file_is_one_clear_line(refusal, configs, text, named):
    (configs / "experiment/damaged.yaml").write_text(text)
    line = refusal("train", "experiment=damaged")
    for words in named:
        assert words in line, line


def every_variant() -> list[tuple[str, str]]:
    """(command, group=variant) for all that configs/ offers, and (command, "") for the defaults alone."""
    commands = [(name, "") for name in REQUIRED]
    groups = [("train", group) for group in groups_of("train")] + [("compare", "study")]
    return commands + [(name, f"{group}={variant}") for name, group in groups for variant in groups_of(name)[group]]


def complete(name: str, choice: str) -> list[str]:
    """Arguments with all that a command requires, and the variant `choice`."""
    if choice.startswith("study="):
        return [choice, "parameters.encoder=DIR"]
    data = ["data.root=DIR"] if choice in ("data=lerobot", "experiment=real") else []
    return [*REQUIRED[name], *data, *([choice] if choice else [])]


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
    whole = compose_command(name, complete(name, choice))
    assert set(whole) <= set(validate(name, whole).model_dump())
    for path in nodes(whole):
        *parents, key = path
        # A variant changes its own node alone; the rest was mutated with the defaults.
        if is_free(parents) or (choice and path[0] != choice.partition("=")[0]):
            continue
        for mutate in (misspelt, of_wrong_type, moved_to_the_top, moved_down):
            damaged = copy.deepcopy(whole)
            if mutate(damaged, tuple(parents), key):
                with pytest.raises(ValueError, match=re.escape(key[:-1])) as refused:
                    validate(name, damaged)
                assert "\n" not in str(refused.value) and not isinstance(refused.value, ValidationError)


def is_free(parents: list[str]) -> bool:
    """Whether any name is right there."""
    named = (
        parents[:1] in (["variants"], ["parameters"])
        or parents == ["data", "cameras"]
        or parents[-1:] in (["transforms"], ["auxiliary"])
    )  # by the user
    return named or "config" in parents  # of another library, checked when the model is made (tests/utils/test_hub.py)


CONFIGS = sorted(path.relative_to(configs_folder()) for path in configs_folder().rglob("*.yaml"))


def damaged_files(path: Path) -> Iterator[str]:
    """The texts of a shipped file with one mistake in it, each key in turn."""
    text = (configs_folder() / path).read_text()
    comments = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    whole = yaml.safe_load(text) or {}
    for *parents, key in nodes(whole):
        if not is_free([*(["auxiliary"] if path.parent.name == "auxiliary" else []), *parents]):
            for mutate in (misspelt, of_wrong_type, moved_to_the_top, moved_down):
                damaged = copy.deepcopy(whole)
                if mutate(damaged, tuple(parents), key):
                    yield comments + yaml.safe_dump(damaged)


def refuses(configs: Path, path: Path, text: str) -> None:
    """The mistake is refused in one line, unless a file that is read later, or an argument, replaces it."""
    name = "compare" if path.parent.name == "study" else "train" if path.parent.name else path.stem
    arguments = complete(name, f"{path.parent.name}={path.stem}" if path.parent.name else "")
    kept, right = (configs / path).read_text(), compose_command(name, arguments)
    (configs / path).write_text(text)
    try:
        config.load(name, arguments)
        assert without_time(compose_command(name, arguments)) == without_time(right), text
    except ValueError as refusal:
        assert "\n" not in str(refusal)
    finally:
        (configs / path).write_text(kept)


def without_time(composed: dict) -> dict:
    """Settings without the folder of a run, in whose name is the time."""
    return {key: without_time(value) if key == "training" else value for key, value in composed.items() if key != "run_dir"}


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_a_mistake_in_a_file_on_the_disk_is_refused(configs, path):
    texts = list(damaged_files(path))
    if texts:
        refuses(configs, path, random.Random(str(path)).choice(texts))


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_mistake_in_a_file_on_the_disk_is_refused(configs, path):
    for text in damaged_files(path):
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
    settings = config.load("train", ["optimizer.lr=1"])
    assert settings.optimizer.lr == 1.0 and isinstance(settings.optimizer.lr, float)


def test_a_setting_of_the_constructor_that_yaml_does_not_mention_is_accepted():
    assert config.load("train", ["optimizer=adamw", "optimizer.amsgrad=true"]).optimizer.amsgrad is True


def test_components_are_those_of_a_policy():
    policy = make_policy(features=FEATURES._replace(cameras=("top", "wrist")), backbone_action=spec("action", "bins"))
    assert set(policy.components()) == set(get_args(Component))


def test_two_loggers_at_once():
    logger = config.load("train", ["logger=[csv,wandb]", "logger.mode=online"]).logger
    assert logger.csv and logger.wandb and logger.mode == "online"


def test_auxiliary_losses_are_combined_by_name(configs):
    text = (configs / "auxiliary/keyframe.yaml").read_text()
    (configs / "auxiliary/second.yaml").write_text(text.replace("keyframe:", "second:").replace("weight: 0.5", "weight: 0.25"))
    auxiliary = config.load("train", ["auxiliary=[keyframe,second]", "auxiliary.second.threshold=0.5"]).auxiliary
    assert {name: (one.weight, one.threshold) for name, one in auxiliary.items()} == {
        "keyframe": (0.5, 0.0),
        "second": (0.25, 0.5),
    }
    assert config.load("train", ["auxiliary=none"]).auxiliary == {}


def test_an_experiment_overrides_the_groups_and_the_command_line_overrides_it(configs):
    (configs / "experiment/mine.yaml").write_text("# @package _global_\ntrainer: {max_steps: 7}\nseed: 3\n")
    settings = config.load("train", ["experiment=mine", "seed=4"])
    assert (settings.trainer.max_steps, settings.seed) == (7, 4)


def test_without_configs_the_line_says_what_to_do(refusal, monkeypatch, tmp_path):
    monkeypatch.setattr("vla_mini.config.sources.shipped", lambda name: tmp_path / name)
    assert "pip install -e ." in refusal("infer", "policy=a")


# -------------------------------------------------------------------------------------------------- comparisons


def variants_of(*arguments: str) -> dict[str, list[str]]:
    settings = config.load("compare", [*arguments, "budget.steps=40", "budget.selections=2"])
    return {name: list(given) for name, given in settings.variants.items()}


def test_each_value_of_a_setting_is_a_variant():
    assert variants_of("experiment=toy_pick", "action=regression,flow") == {
        "regression": ["experiment=toy_pick", "action=regression"],
        "flow": ["experiment=toy_pick", "action=flow"],
    }
    assert list(variants_of("optimizer.lr=1e-3,0.01", "freeze=[],[vision]")) == [
        f"lr={rate} freeze={frozen}" for rate in (0.001, 0.01) for frozen in ("[]", "[vision]")
    ]
    rates = variants_of("optimizer=adam", "optimizer.lr=1e-3,3e-3")
    assert rates["lr=0.003"] == ["optimizer=adam", "optimizer.lr=0.003"]


def test_variants_that_differ_in_more_have_names():
    variants = variants_of("variants.one=action=flow", 'variants.two=action=flow language.max_words="16"', "logger=[csv]")
    assert variants == {
        "one": ["action=flow", "logger=[csv]"],
        "two": ["action=flow", "language.max_words=16", "logger=[csv]"],  # split as by the shell
    }


def test_the_command_line_overrides_a_study_and_may_leave_variants_out():
    variants = variants_of(
        "study=heads", "budget.seconds=null", "variants.bins=null", "action.hidden=64", "experiment=toy_pick_smoke"
    )
    assert list(variants) == ["regression", "flow", "diffusion", "fast"]
    assert variants["flow"] == ["experiment=toy_pick", "action=flow", "action.hidden=64", "experiment=toy_pick_smoke"]
    settings = config.load("train", variants["flow"])
    assert settings.action.hidden == 64 and settings.data.episodes == 16


@pytest.mark.parametrize("study", groups_of("compare")["study"])
def test_every_study_is_complete(study):
    settings = config.load("compare", [f"study={study}", "parameters.encoder=some folder, (1)"])
    assert settings.name == study and settings.question.endswith("?") and len(settings.variants) >= 2


def test_a_study_that_would_change_nothing_is_refused(refusal, configs):
    (configs / "study/mine.yaml").write_text("variants: {one: action=flow}\n")
    assert "# @package _global_" in refusal("compare", "study=mine", "budget.steps=40")


def test_a_study_requires_a_parameter():
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
    settings = config.load("infer", [f"instruction={text}", f"policy={text}", f"image={text}", "state=[0]"])
    assert (settings.instruction, settings.policy, settings.image) == (
        text,
        os.path.expanduser(text),
        (os.path.expanduser(text),),
    )


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: text != "???"))
@hypothesis_settings(max_examples=25, deadline=None)
def test_any_text_arrives_as_it_was_written(text):
    assert config.load("infer", [f"instruction={text}", "policy=a", "image=b", "state=[0]"]).instruction == text


@given(st.text("\\${}'\"(,=: a"))
@hypothesis_settings(max_examples=25, deadline=None)
def test_text_made_of_all_that_is_special_arrives_as_it_was_written(text):
    assert config.load("gradients", [f"policy={text}", f"data={text}"]).data == text


def test_images_of_several_cameras_are_a_list():
    settings = config.load("infer", ["policy=a", "image=[top view.png, (2).png]", "instruction=b", "state=[0]"])
    assert settings.image == ("top view.png", "(2).png")


def test_null_is_no_path_but_it_is_a_text():
    assert config.load("gradients", ["policy=a", "data=null"]).data is None
    assert config.load("train", ["vision=huggingface", "vision.path=null"]).vision.path is None
    assert config.load("infer", ["policy=a", "image=b", "instruction=null", "state=[0]"]).instruction == "null"


# ------------------------------------------------------------------------------------------------ the settings


def test_the_settings_are_resolved_frozen_and_name_the_run_folder():
    settings = config.load("train", ["experiment=toy_pick_smoke"])
    assert re.fullmatch(r"runs/toy_pick_smoke/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", settings.run_dir)
    assert "${" not in settings.model_dump_json()
    assert config.load("train", ["experiment=toy_pick_smoke"]).run_dir != settings.run_dir
    for node, name in ((settings, "seed"), (settings.trainer, "max_steps"), (settings.evaluation, "episodes")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(node, name, 1)


def test_an_object_holds_its_arguments_by_name():
    optimizer = config.load("train", ["optimizer=adam", "optimizer.betas=[0.5,1]"]).optimizer
    assert optimizer.target == "torch.optim.Adam" and optimizer.amsgrad is False
    assert optimizer.arguments() == {"lr": 1e-3, "betas": (0.5, 1.0), "eps": 1e-8, "weight_decay": 0.0}
    head = config.load("train", ["action=diffusion", "action.target=noise"]).action  # whose setting is named like ours
    assert head.arguments()["target"] == "noise" and head.as_dict()["_target_"].endswith(".DiffusionHead")


def test_a_run_can_be_put_elsewhere():
    assert config.load("train", ["hydra.run.dir=/tmp/my run, (1)"]).run_dir == "/tmp/my run, (1)"


# ---------------------------------------------------------------------------------------------- help, exit codes


@pytest.mark.parametrize("name", REQUIRED)
def test_every_command_has_help_without_torch(name, tmp_path):
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit:\n    assert not {'torch', 'hydra'} & set(sys.modules); raise\n"
    )
    script = ROOT / "scripts" / f"{name}.py"
    code = f"import sys; sys.argv = [{str(script)!r}, '--help', 'sed=1']\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(script.read_text().splitlines()[0].removeprefix('"""'))
    assert "settings:" in done.stdout and done.stdout.count(f"python scripts/{name}.py ") >= 2  # usage and example
    for group, variants in groups_of(name).items():
        assert re.search(rf"^  {group} +.*{variants[0]}", done.stdout, flags=re.MULTILINE), group
    if name == "train":
        for words in ("seed=0", "evaluation.episodes=", "hydra.run.dir=DIR", "not trained, e.g. [vision]"):
            assert words in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_lists_the_settings_of_a_group(capsys):
    assert config.run("train", ["--help", "data"], never) == 0
    out = capsys.readouterr().out
    assert re.search(r"^data=lerobot$", out, re.MULTILINE)
    assert re.search(r"^  data.image_size=null +\[height, width\] that all images", out, re.MULTILINE)
    assert "data.normalization.clip=null" in out and "optimizer" not in out


@pytest.mark.parametrize(
    ("argument", "example"),
    [
        ("data.image_size=[96]", "data.image_size=[96] is not a list of 2 values; for example data.image_size=[96,96]"),
        ("data.cameras=top", "for example data.cameras={top: observation.images.top}"),
        ("data.roots=[a,b]", "for example data.roots={my/a: 0.7, my/b: 0.3}"),
    ],
)
def test_a_setting_of_several_values_has_an_example(argument, example):
    with pytest.raises(ValueError, match=re.escape(example)):
        config.load("train", ["experiment=real", "data.root=a", argument])


def test_a_reader_that_closes_the_pipe_ends_a_command_quietly():
    code = "from vla_mini import config\nraise SystemExit(config.run('gradients', ['policy=a'], lambda _: print('a' * 10**6)))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (141, "")


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--cfg=job"], ["-c", "job"]])
def test_cfg_job_prints_what_was_composed(capsys, flags):
    assert config.run("gradients", [*flags, "seed=3"], never) == 0
    assert yaml.safe_load(capsys.readouterr().out)["seed"] == 3


ARGUMENTS = ["policy=a"]  # a correct command line of gradients.py


def test_exit_code_0_and_main_gets_the_settings():
    got = []
    assert config.run("gradients", ARGUMENTS, got.append) == 0
    assert got[0].policy == "a"


def raising(error: BaseException, *folders: Path):
    def main(settings):
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


def test_a_failure_while_working_is_exit_code_1_and_empty_folders_are_removed(capsys, tmp_path):
    assert config.run("gradients", ARGUMENTS, raising(ValueError("not finite"), tmp_path / "a/b")) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and error.endswith("\ngradients: not finite\n")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_working_leaves_what_was_written(tmp_path):
    def main(settings):
        (config.new_folder(tmp_path / "a/b") / "file").write_text("kept")
        raise OSError(28, "No space left on device")

    assert config.run("gradients", ARGUMENTS, main) == 1
    assert (tmp_path / "a/b/file").read_text() == "kept"


def test_a_command_without_an_output_folder_marks_the_start_of_its_work():
    def main(settings):
        config.start_work()
        raise OSError(28, "No space left on device")

    assert config.run("gradients", ARGUMENTS, main) == 1


def test_an_internal_error_is_exit_code_1_with_a_traceback(capsys):
    assert config.run("gradients", ARGUMENTS, raising(AssertionError("shapes"))) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_have_their_exit_codes_even_if_a_library_catches_them(capsys, number, code):
    before = signal.getsignal(number)

    def swallowing(settings):
        try:
            os.kill(os.getpid(), number)
        except BaseException:
            raise SystemExit(1) from None

    def finishing(settings):
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), number)

    assert config.run("gradients", ARGUMENTS, lambda settings: os.kill(os.getpid(), number)) == code
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


def test_latest_links_to_the_newest_run_relatively(tmp_path):
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
    run.mkdir()
    (tmp_path / "latest").mkdir()
    config.point_latest(run)
    assert "latest was not set to 2025-01-01_00-00-00-000000: Is a directory" in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [run.name, "latest"]
    config.point_latest(tmp_path / "gone" / run.name)
    assert "No such file or directory" in capsys.readouterr().err


def test_a_run_put_elsewhere_gets_no_latest_beside_it(tmp_path):
    (tmp_path / "mine").mkdir()
    config.point_latest(tmp_path / "mine")
    assert not (tmp_path / "latest").exists()
