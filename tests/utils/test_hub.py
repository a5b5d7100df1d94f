"""Models of transformers by folder, by config and by hub id, all without a network."""

import json
import shutil

import pytest
import torch

from vla_mini.utils import hub

BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def folder(tmp_path):
    model, _ = hub.make(BERT | {"vocab_size": 20})
    model.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_loaded_model_can_be_made_again_from_its_config(folder):
    edit(folder, gradient_checkpointing=False)  # a setting of older versions
    loaded, config = hub.load(folder, part="text")
    assert loaded.training  # as any new module is
    again, _ = hub.make(json.loads(json.dumps(config)))
    again.load_state_dict(loaded.state_dict())
    tokens = torch.arange(6).reshape(2, 3)
    a, b = (model.eval()(input_ids=tokens).last_hidden_state for model in (loaded, again))
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert "return_dict" not in config and config["hidden_act"] == "gelu"  # without the defaults that all models share


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("part", ["vision", "text"])
def test_the_chosen_one_of_two_encoders_is_loaded(kind, part, tmp_path):
    from transformers import AutoConfig, AutoModel

    text, vision = SMALL | {"vocab_size": 20, "eos_token_id": 1, "bos_token_id": 0}, SMALL | {"image_size": 8, "patch_size": 4}
    size = {"projection_dim": 8} if kind == "clip" else {}
    whole = AutoModel.from_config(AutoConfig.for_model(kind, text_config=text, vision_config=vision, **size))
    whole.save_pretrained(tmp_path / kind)
    model, config = hub.load(tmp_path / kind, part=part)
    assert config["model_type"] == f"{kind}_{part}_model"
    ours, theirs = model.state_dict(), whole.state_dict()
    assert ours and all(torch.equal(tensor, theirs[f"{part}_model.{name}"]) for name, tensor in ours.items())
    again, _ = hub.make(json.loads(json.dumps(config)))
    again.load_state_dict(ours)


def test_of_an_encoder_and_a_decoder_the_encoder_is_made(tmp_path):
    config = {"model_type": "t5", "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    tokens = torch.arange(6).reshape(2, 3)
    model, config = hub.make(config)
    again, _ = hub.make(json.loads(json.dumps(config)))
    again.load_state_dict(model.state_dict())
    assert again(input_ids=tokens).last_hidden_state.shape == (2, 3, 16)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "brt"}, "model_type=brt: transformers has no model of that type"),
        (BERT | {"hiden_size": 3}, "no setting 'hiden_size'; did you mean 'hidden_size'"),
        (BERT | {"hidden_size": 15}, "hidden size"),
        (BERT | {"hidden_size": "four"}, "hidden_size"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(config, message):
    with pytest.raises(ValueError, match=message) as refused:
        hub.make(config)
    assert "\n" not in str(refused.value)


def no_config(folder):
    (folder / "config.json").unlink()


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def other_size(folder):
    edit(folder, hidden_size=32)


def other_depth(folder):
    edit(folder, num_hidden_layers=2)


def unknown_type(folder):
    edit(folder, model_type="bart_simpson")


def foreign_code(folder):
    edit(folder, model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Model"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "there is no such folder"),
        (no_config, "the folder holds no model: there is no config.json in it"),
        (no_weights, "model.safetensors"),
        (other_size, "its weights do not have the sizes in its config.json"),
        (other_depth, "its weights lack encoder.layer.1.attention.output.LayerNorm.bias and 15 more"),
        (unknown_type, "transformers has no model of that type"),
        (foreign_code, "only with trust_remote_code=true"),
    ],
)
def test_a_folder_without_a_usable_model_is_refused_in_one_line(folder, damage, message, capfd):
    damage(folder)
    with pytest.raises(ValueError, match=message) as refused:
        hub.load(hub.fetch(folder), part="text")
    assert "\n" not in str(refused.value)
    assert str(folder) in str(refused.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("reachable", [True, False])
def test_a_hub_id_without_network_is_refused_in_one_line(reachable, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    if reachable:  # not offline, but no server answers at this address
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="path=nobody/nothing: there is no such folder, the hub cannot be reached") as refused:
        hub.fetch("nobody/nothing")
    assert "\n" not in str(refused.value)


def test_parameters_that_the_output_does_not_depend_on_are_frozen():
    model, _ = hub.make(BERT)
    hub.freeze_unused(model, model(input_ids=torch.ones(1, 2, dtype=torch.int64)).last_hidden_state)
    frozen = {name.split(".")[0] for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"pooler"}
