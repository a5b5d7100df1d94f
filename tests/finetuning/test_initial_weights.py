"""Initial weights from a saved policy: the new one acts as it did until its first step; what does not fit is refused first."""

import hashlib
import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torchvision import models
from transformers import PreTrainedTokenizerFast

from tests.factory import command, make_observation, make_policy
from tests.utils.test_lora import adapted
from vla_mini import config
from vla_mini.collection import collect
from vla_mini.data.reader import read_dataset
from vla_mini.finetuning.initial_weights import load_initial_weights, warn_about_mismatch
from vla_mini.policy import Policy
from vla_mini.settings import TrainSettings
from vla_mini.setup.demonstrations import dry_run
from vla_mini.setup.policy import untrained_policy
from vla_mini.utils import hub

ENV = "vla_mini/ToyPick-v0"
BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    root = tmp_path_factory.mktemp("data") / "toy_pick"
    collect(ENV, root, episodes=6, seed=0, num_workers=1)
    return read_dataset(root)


def settings(*arguments, **parts):
    """Of train.py; `parts` by name, as their settings are saved with a policy."""
    chosen = config.load("train", ["experiment=toy_pick_smoke", *arguments])
    return TrainSettings.model_validate(chosen.model_dump(by_alias=True, exclude_unset=True, mode="json") | parts)


def untrained(folder, demonstrations, *arguments, **parts):
    return untrained_policy(settings(f"init_from={folder}", *arguments, **parts), demonstrations).eval()


def saved_part(folder, kind):
    return json.loads((folder / "config.json").read_text())["parts"][kind]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "policy"
    make_policy(seed=3).save_pretrained(folder)
    return folder


def test_it_acts_as_the_saved_policy(folder, demonstrations):
    """With the saved statistics and words, whatever those of the new data are."""
    saved, policy = Policy.from_pretrained(folder), untrained(folder, demonstrations)
    observation = make_observation(saved)
    assert torch.equal(policy.act(observation), saved.act(observation))
    assert policy.language.tokenizer.get_vocab() == saved.language.tokenizer.get_vocab()
    manifest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert policy.source == {"env": ENV, "dataset": demonstrations.fingerprint, "init_from": manifest}
    assert policy.train().training and all(parameter.requires_grad for parameter in policy.parameters())


@pytest.mark.parametrize("save", ["merged", "separate"])
def test_adapters_are_merged_and_new_ones_change_nothing_at_first(tmp_path, demonstrations, save):
    saved = adapted(save=save)
    saved.save_pretrained(tmp_path / "policy")
    observation = make_observation(saved)
    for arguments in ([], ["lora.targets=[trunk]"]):
        policy = untrained(tmp_path / "policy", demonstrations, *arguments)
        torch.testing.assert_close(policy.act(observation), saved.act(observation), rtol=1e-4, atol=1e-5)
        assert (policy.lora is None) == (not arguments)


def test_how_a_part_is_trained_may_change(tmp_path, demonstrations):
    folder = tmp_path / "policy"
    frozen = {"_target_": "vla_mini.language.huggingface.HuggingFaceLanguage", "config": BERT, "frozen": True}
    make_policy(language=frozen).save_pretrained(folder)
    language = saved_part(folder, "language")
    policy = untrained(folder, demonstrations, language=language | {"frozen": False})
    assert policy.language.settings["frozen"] is False
    assert all(parameter.requires_grad for parameter in policy.language.model.encoder.parameters())
    noisy, more = language | {"noise": 0.5}, ["auxiliary.keyframe.weight=2.0", "action.distance=mse"]
    assert untrained(folder, demonstrations, *more, language=noisy).auxiliary["keyframe"].weight == 2.0
    lora = ["lora.targets=[trunk]", "lora.also_train=[language]"]
    policy = untrained_policy(settings(f"init_from={folder}", *lora, language=noisy), demonstrations)
    assert policy.language.training and policy.language.noise == 0.5  # as a frozen part may be, for its noise
    with pytest.raises(ValueError, match=r"lora\.also_train\.language: nothing in it is trainable"):
        untrained(folder, demonstrations, *lora, language=language)
    other = language | {"config": language["config"] | {"num_attention_heads": 4}}  # weights of the same shapes
    with pytest.raises(
        ValueError, match=r"its language.config.num_attention_heads is 2, here it is 4: use language.config.num"
    ):
        untrained(folder, demonstrations, language=other)


def test_pretrained_parts_may_come_from_elsewhere_and_where_from_is_not_saved(tmp_path, demonstrations):
    """Their weights are the saved policy's, so the path is not read; what follows from it (`norm`) is saved."""
    from safetensors.torch import save_file

    save_file(models.resnet18().state_dict(), tmp_path / "resnet.safetensors")
    hub.make(BERT | {"vocab_size": 30})[0].save_pretrained(tmp_path / "bert")
    words = {"[PAD]": 0, "[UNK]": 1, "pick": 2}
    tokenizer = Tokenizer(WordLevel(words, "[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(tmp_path / "bert")
    vision = {"_target_": "vla_mini.vision.torchvision.TorchvisionVision", "path": str(tmp_path / "resnet.safetensors")}
    language = {"_target_": "vla_mini.language.huggingface.HuggingFaceLanguage", "path": str(tmp_path / "bert")}
    saved, folder = make_policy(vision=vision, language=language), tmp_path / "policy"
    saved.save_pretrained(folder)
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.glob("*.json"))
    assert saved_part(folder, "vision")["norm"] == "frozen"
    policy = untrained(folder, demonstrations, vision=vision | {"path": "/else"}, language=language | {"path": "/else"})
    observation = make_observation(saved)
    assert torch.equal(policy.act(observation), saved.act(observation))
    policy.save_pretrained(tmp_path / "next")
    assert saved_part(tmp_path / "next", "vision") == saved_part(folder, "vision")
    with pytest.raises(ValueError, match=r"its vision.norm is frozen, here it is group: use vision.norm=frozen"):
        untrained(folder, demonstrations, vision=vision | {"path": None}, language=language)
    with pytest.raises(ValueError, match=r"its language.config is null, here it is {...}: use language.config=null"):
        untrained(folder, demonstrations, vision=vision, language=language | {"path": None, "config": BERT})
    assert (
        untrained(folder, demonstrations, vision=vision, language=language | {"path": None}).language.settings["path"] is None
    )


def test_how_many_steps_a_sample_takes_may_change(tmp_path, demonstrations):
    make_policy(action={"_target_": "vla_mini.action.flow.FlowHead"}).save_pretrained(tmp_path / "policy")
    action = saved_part(tmp_path / "policy", "action") | {"num_steps": 3}
    assert untrained(tmp_path / "policy", demonstrations, action=action).action.num_steps == 3


def test_learned_action_tokens_are_loaded(tmp_path, demonstrations):
    saved = make_policy(action="fast")
    saved.save_pretrained(tmp_path / "policy")
    policy = untrained(tmp_path / "policy", demonstrations, "action=fast")
    assert policy.action.tokenizer.to_str() == saved.action.tokenizer.to_str()
    observation = make_observation(saved)
    assert torch.equal(policy.act(observation), saved.act(observation))
    with pytest.raises(ValueError, match=r"its data\.horizon is 8, here it is 2"):
        untrained(tmp_path / "policy", demonstrations, "action=fast", "data.horizon=2", "execute=1")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("vision.width=32", "its vision.width is 64, here it is 32: use vision.width=64"),
        ("action=flow", "its action is RegressionHead, here it is FlowHead: use action=regression"),
        ("auxiliary=none", "its auxiliary.keyframe is KeyframeLoss, here it is none: use auxiliary=keyframe"),
        ("insulate=true", "its backbone_action is none, here it is BinsHead: use insulate=false"),
        ("data.horizon=4", "its data.horizon is 8, here it is 4"),
        (
            "auxiliary.keyframe.state=[x]",
            "its auxiliary.keyframe.state is [x,y], here it is [x]: use auxiliary.keyframe.state=[x,y]",
        ),
        ("ablate=[instruction]", "its ablate is [], here it is [instruction]"),
        ("freeze=[visoin]", "no part 'visoin'; did you mean 'vision'?"),
        ("lora.targets=[quieries]", "no module 'quieries'; did you mean 'queries'?"),
        ("unfreeze_at.vison=2", "no part 'vison'; did you mean 'vision'?"),
        ("schedule.multipliers.camera_embedding=2", "there is no component 'camera_embedding'"),
        ("schedule.multipliers.vision=2 freeze=[vision]", "schedule.multipliers.vision: nothing in it is trainable"),
        ("lora.targets=[vision,trunk] freeze=[vision]", "lora.targets.vision.stem: nothing in it is trainable"),
        ("lora.targets=[trunk] lora.also_train=[state] freeze=[state]", "lora.also_train=[state] and freeze=[state]: give one"),
        ("unfreeze_at.vision=2 lora.targets=[trunk]", "unfreeze_at.vision: nothing in it is trainable"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_collected(folder, tmp_path, monkeypatch, capsys, argument, message):
    monkeypatch.chdir(tmp_path)
    arguments = ["experiment=toy_pick_smoke", "data.root=missing", f"init_from={folder}", *argument.split()]
    assert command("train", *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err, err
    assert list(tmp_path.iterdir()) == []


def test_no_folder_and_a_damaged_one_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="init_from=/nowhere: there is no such folder"):
        dry_run(settings("init_from=/nowhere"))
    make_policy().save_pretrained(tmp_path / "policy")
    (tmp_path / "policy" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing"):
        dry_run(settings(f"init_from={tmp_path / 'policy'}"))


def test_data_of_other_features_are_refused(folder, demonstrations):
    other = demonstrations._replace(features=demonstrations.features._replace(state=("x", "y", "z", "closed")))
    with pytest.raises(ValueError, match=r"its state is \[x,y,height,closed\], here it is \[x,y,z,closed\]"):
        untrained(folder, other, "env=none")


def test_weights_of_other_shapes_are_named():
    policy, saved = make_policy(), make_policy()
    saved.language.table = torch.nn.Embedding(99, 64)
    with pytest.raises(ValueError, match=r"init_from=DIR: its language.table.weight is \(99, 64\), here it is \(15, 64\)"):
        load_initial_weights(policy, saved, source="DIR")


def test_what_the_data_have_beyond_it_is_printed(folder, demonstrations, capsys):
    """make_policy's vocabulary is smaller than toy_pick's, and its range of actions, -0.9 to 1.1, nearly the same."""
    untrained(folder, demonstrations)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("init_from: the saved policy does not know the words ")
    words = line.removeprefix("init_from: the saved policy does not know the words ").partition(":")[0].split(", ")
    assert "yellow" in words and "red" not in words
    action = demonstrations.statistics.action
    wide = action._replace(max=action.max * np.array([1, 3, 1, 1], np.float32))
    far = demonstrations._replace(statistics=demonstrations.statistics._replace(action=wide))
    warn_about_mismatch(Policy.from_pretrained(folder), far)
    _, second = capsys.readouterr().err.splitlines()
    assert second == "init_from: the data's dy has 2.9 times the saved range, which is kept"
