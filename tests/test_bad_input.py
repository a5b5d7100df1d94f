"""Wrong settings of variants on train.py's command line: one clear line, exit code 2, and nothing is written."""

import json
from pathlib import Path

import pytest

from tests.factory import command
from vla_mini import config
from vla_mini.collection import collect
from vla_mini.data.reader import read_dataset
from vla_mini.setup.demonstrations import dry_run
from vla_mini.utils import hub

BERT = {"model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION, LANGUAGE = "vision=huggingface vision.", "language=huggingface language."


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A working directory with a few demonstrations, and folders that are no models, or not what is asked for."""
    place = tmp_path_factory.mktemp("place")
    collect("vla_mini/ToyPick-v0", place / "data", episodes=4, validation_episodes=2, seed=0, num_workers=1)
    read_dataset(place / "data")  # once, which decodes its images
    for name in ("empty", "unknown", "foreign"):
        (place / name).mkdir()
    (place / "unknown/config.json").write_text('{"model_type": "bart_simpson"}')
    foreign = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (place / "foreign/config.json").write_text(json.dumps(foreign))
    hub.make(BERT)[0].save_pretrained(place / "bert")  # without a tokenizer
    return place


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (VISION + "path=nobody/nothing", "path=nobody/nothing: there is no such folder, the hub cannot be reached"),
        (LANGUAGE + "path=nobody/nothing", "path=nobody/nothing: there is no such folder, the hub cannot be reached"),
        (LANGUAGE + "path=nowhere", "path=nowhere: there is no such folder, and it is not a hub id (owner/name)"),
        (VISION + "path=./empty", "path=./empty: the folder holds no model: there is no config.json in it"),
        (LANGUAGE + "path=unknown", "path=unknown: transformers has no model of that type"),
        (VISION + "path=bert", "model_type=bert is not an encoder of patches"),
        (LANGUAGE + "path=bert", "path=bert holds no tokenizer"),
        (VISION + "path=foreign", "it needs code that comes with it, which is run only with trust_remote_code=true"),
        (LANGUAGE + "path=foreign", "it needs code that comes with it, which is run only with trust_remote_code=true"),
        (VISION + "config.embed_dim=65", "model_type=swin cannot encode images: shape"),
        (VISION + "config.window_size=0", "model_type=swin cannot encode images: integer modulo by zero"),
        (LANGUAGE + "config.hidden_size=65", "The hidden size (65) is not a multiple of the number of attention heads (4)"),
        (VISION + "config.embed_dim=0", "model_type=swin: "),
        (VISION + "config.hiden_size=64", "there is no setting 'hiden_size'; did you mean 'hidden_size'?"),
        (LANGUAGE + "config.model_type=brt", "model_type=brt: transformers has no model of that type"),
        (
            "vision=torchvision vision.name=resnet81",
            "vision.name='resnet81' is not a classification network of torchvision; did you",
        ),
        ("vision=torchvision vision.stride=0", "vision.stride=0 is not an integer of at least 1"),
        ("vision=torchvision vision.layer=fc", "vision.layer='fc' does not give a map (b c h w)"),
        ("vision.width=0", "vision.width=0 is not an integer of at least 1"),
        ("vision=patch vision.num_heads=3", "num_heads=3 does not divide the width 64"),
        ("vision.input_size=[64]", "vision.input_size=[64] is not a height and a width"),
        ("trunk.num_queries=-1", "trunk.num_queries=-1 is not an integer of at least 1"),
        ("history=100", "history=100 must be 1 to "),
        ("augmentation=default augmentation.transforms.colour.hue=2", "augmentation.transforms.colour: hue values"),
        ("trainer.deterministic=true", "unknown key 'trainer.deterministic' (=true): did you mean 'deterministic'?"),
        ("trainer.val_check_interval=0.5", "trainer: `val_check_interval` should be an integer"),
        ("trainer.limit_val_batches=1.5", "trainer: You have passed invalid value 1.5 for limit_val_batches"),
        ("trainer.limit_train_batches=0", "trainer.limit_train_batches=0 is not an integer of at least 1 or a number above 0"),
        ("trainer.accelerator=tpu", "trainer.accelerator=tpu: torch finds no such device here"),
        ("optimizer=sgd optimizer.momentum=0", "optimizer: SGD cannot train like this: Nesterov momentum requires a momentum"),
        ("optimizer=adam optimizer.betas=[0.9,1.5]", "optimizer: Adam cannot train like this: Invalid beta parameter"),
    ],
)
def test_a_mistake_is_one_clear_line(place, monkeypatch, capfd, arguments, message):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    small = ["experiment=toy_pick_smoke", "data.root=data", "data.batch_size=8", "hydra.run.dir=run"]
    assert command("train", *small, *arguments.split()) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err, err
    assert sorted(place.rglob("*")) == before


def test_a_logger_whose_package_is_not_there_is_refused(monkeypatch, capsys, place):
    monkeypatch.chdir(place)
    monkeypatch.setattr("vla_mini.training.loggers.find_spec", lambda name: None)
    assert command("train", "experiment=toy_pick_smoke", "data.root=data", "logger=tensorboard", "hydra.run.dir=run") == 2
    assert "logger=tensorboard needs a package that is not installed: pip install" in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.batch_size=769"], "data.batch_size=769: a batch needs 769 frames, and there will be 16 episodes of at"),
        (["data.horizon=49"], "horizon=49 must be 1 to 48, the number of frames of the longest episode"),
        (["history=49"], "history=49 must be 1 to 48, the number of frames of the longest episode"),
    ],
)
def test_what_no_episode_could_hold_is_refused_before_collecting(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert command("train", "experiment=toy_pick_smoke", *arguments) == 2
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_what_some_episodes_will_hold_is_not_refused_because_of_two_short_ones():
    settings = config.load("train", ["experiment=toy_pick_smoke", "data.horizon=48", "history=48", "data.batch_size=768"])
    dry_run(settings)
