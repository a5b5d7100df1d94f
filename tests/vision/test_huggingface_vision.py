"""Tokens are patches, in their order; and a pretrained model is saved with the policy."""

import json
import shutil

import pytest
import torch

from tests.factory import make_observation, make_policy
from vla_mini.policy import Policy
from vla_mini.utils import hub

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
TARGET = {"_target_": "vla_mini.vision.huggingface.HuggingFaceVision"}


def make(**settings):
    """The encoder, fitted as in a policy for images of 64 x 64 pixels."""
    return make_policy(vision=TARGET | settings).vision


def statistics_of(vision) -> tuple[list[float], list[float]]:
    """Mean and standard deviation that images are normalised with."""
    return vision.processor["image_mean"], vision.processor["image_std"]


@pytest.fixture
def folder(tmp_path):
    """A pretrained DINOv2 for images of 16 pixels, whose processor resizes them to 24."""
    model, _ = hub.make(SMALL | {"model_type": "dinov2"})
    model.save_pretrained(tmp_path / "dino")
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "size": {"shortest_edge": 32}}
    processor["crop_size"] = {"height": 24, "width": 24}
    (tmp_path / "dino" / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path / "dino"


@pytest.mark.parametrize("kind", ["siglip_vision_model", "dinov2", "dinov2_with_registers", "vit", "clip_vision_model", "deit"])
def test_a_change_in_one_patch_changes_its_own_token_most(kind):
    vision = make(config=SMALL | {"model_type": kind})
    assert vision.grid == (4, 4) and vision.width == 16
    images = torch.rand(1, 3, 16, 16)
    for row, column in [(0, 0), (1, 3), (3, 2)]:
        other = images.clone()
        other[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = (
            1 - other[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        )
        change = (vision(other) - vision(images)).norm(dim=-1)[0]
        assert change.argmax() == 4 * row + column


def test_images_are_resized_to_the_size_of_the_model():
    vision = make(config=SMALL | {"model_type": "siglip_vision_model"})
    assert vision(torch.rand(2, 3, 48, 64)).shape == (2, 16, 16)
    grey = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(vision(torch.full((1, 3, 40, 24), 0.3)), vision(grey), rtol=1e-4, atol=1e-5)


def test_pretrained_models_keep_their_size_and_normalisation(folder):
    vision = make(path=str(folder))
    assert vision.input_size == [24, 24] and vision.grid == (6, 6)
    assert statistics_of(vision) == ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    from transformers import AutoModel

    images = torch.rand(2, 3, 24, 24)
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics_of(vision))
    expected = AutoModel.from_pretrained(folder)(pixel_values=(images - mean) / std).last_hidden_state[:, 1:]
    torch.testing.assert_close(vision(images), expected)


def test_processors_are_read_as_transformers_5_writes_them(folder):
    """Within processor_config.json; normalisation and cropping can be switched off."""
    old = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Any", "image_processor": old}))
    vision = make(path=str(folder))
    assert vision.input_size == [24, 24] and statistics_of(vision)[0] == [0.1, 0.2, 0.3]
    plain = {"image_processor": old | {"do_normalize": False, "do_center_crop": False}}
    (folder / "processor_config.json").write_text(json.dumps(plain))
    vision = make(path=str(folder))
    assert vision.input_size == [32, 32] and statistics_of(vision) == ([0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize("trust", [False, True])
def test_a_saved_policy_does_not_need_the_folder(folder, tmp_path, trust):
    policy = make_policy(vision=TARGET | {"path": str(folder), "trust_remote_code": trust})
    policy.save_pretrained(tmp_path / "policy")
    shutil.rmtree(folder)
    loaded = Policy.from_pretrained(tmp_path / "policy")  # without trust, since no code came with it
    observation = make_observation(policy)
    torch.testing.assert_close(loaded.act(observation), policy.act(observation), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "path=null, config=null: give a path .* or a config"),
        ({"config": {"model_type": "bert"}}, "model_type=bert is not an encoder of patches"),
    ],
)
def test_models_that_do_not_encode_images_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_an_unknown_normalisation_has_to_be_given(folder):
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="give image_mean and image_std"):
        make(path=str(folder))
    assert make(path=str(folder), image_mean=[0.5] * 3, image_std=[0.5] * 3).input_size == [16, 16]
