"""The tokens are the patches, in their order; and what was pretrained elsewhere is saved whole."""

import json
import shutil

import pytest
import torch

from tests.factory import make_observation, make_policy, spec
from vla_mini import files, hub
from vla_mini.policy import Policy
from vla_mini.vision.huggingface import HuggingFaceVision

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
TARGET = {"_target_": "vla_mini.vision.huggingface.HuggingFaceVision"}


@pytest.fixture
def folder(tmp_path):
    """A pretrained DINOv2 that was made for images of 16 pixels, and is shown 24."""
    model, _ = hub.make(SMALL | {"model_type": "dinov2"})
    model.save_pretrained(tmp_path / "dino")
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "size": {"shortest_edge": 32}}
    processor["crop_size"] = {"height": 24, "width": 24}
    (tmp_path / "dino" / "preprocessor_config.json").write_text(json.dumps(processor))
    return tmp_path / "dino"


@pytest.mark.parametrize("kind", ["siglip_vision_model", "dinov2", "dinov2_with_registers", "vit", "clip_vision_model", "deit"])
def test_a_change_in_one_patch_changes_its_own_token_most(kind):
    torch.manual_seed(0)
    vision = HuggingFaceVision(config=SMALL | {"model_type": kind}).eval()
    assert vision.grid == (4, 4) and vision.width == 16
    images = torch.rand(1, 3, 16, 16)
    for row, column in [(0, 0), (1, 3), (3, 2)]:
        other = images.clone()
        other[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = (
            1 - other[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        )
        change = (vision(other) - vision(images)).norm(dim=-1)[0]
        assert change.argmax() == 4 * row + column


def test_images_of_any_size_are_resized_to_the_models():
    vision = HuggingFaceVision(config=SMALL | {"model_type": "siglip_vision_model"}).eval()
    assert vision(torch.rand(2, 3, 48, 64)).shape == (2, 16, 16)
    grey = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(vision(torch.full((1, 3, 40, 24), 0.3)), vision(grey), rtol=1e-4, atol=1e-5)


def test_pretrained_ones_bring_their_size_and_normalisation(folder):
    vision = HuggingFaceVision(path=str(folder)).eval()
    assert vision.input_size == [24, 24] and vision.grid == (6, 6)
    assert vision.image_mean == [0.1, 0.2, 0.3] and vision.image_std == [0.5, 0.6, 0.7]
    from transformers import AutoModel

    images = torch.rand(2, 3, 24, 24)
    mean, std = (torch.tensor(values)[:, None, None] for values in (vision.image_mean, vision.image_std))
    expected = AutoModel.from_pretrained(folder)(pixel_values=(images - mean) / std).last_hidden_state[:, 1:]
    torch.testing.assert_close(vision(images), expected)


def test_processors_are_read_as_transformers_5_writes_them(folder):
    """Within processor_config.json; and what they say is not done, is not done."""
    old = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Any", "image_processor": old}))
    vision = HuggingFaceVision(path=str(folder))
    assert vision.input_size == [24, 24] and vision.image_mean == [0.1, 0.2, 0.3]
    plain = {"image_processor": old | {"do_normalize": False, "do_center_crop": False}}
    (folder / "processor_config.json").write_text(json.dumps(plain))
    vision = HuggingFaceVision(path=str(folder))
    assert vision.input_size == [32, 32] and vision.image_mean == [0.0] * 3 and vision.image_std == [1.0] * 3


def test_trust_that_was_not_needed_leaves_no_trace(folder, tmp_path):
    policy = make_policy(vision=TARGET | {"path": str(folder), "trust_remote_code": True})
    policy.save_pretrained(tmp_path / "policy")
    shutil.rmtree(folder)
    observation = make_observation(policy)
    torch.testing.assert_close(Policy.from_pretrained(tmp_path / "policy").act(observation), policy.act(observation))


def test_a_saved_policy_needs_the_folder_no_more(folder, tmp_path):
    policy = make_policy(vision=TARGET | {"path": str(folder)})
    policy.save_pretrained(tmp_path / "policy")
    shutil.rmtree(folder)
    assert str(folder) not in (tmp_path / "policy" / "config.json").read_text()
    loaded = Policy.from_pretrained(tmp_path / "policy")
    observation = make_observation(policy)
    torch.testing.assert_close(loaded.act(observation), policy.act(observation), rtol=0, atol=0)


def test_a_saved_policy_with_foreign_code_is_refused(tmp_path):
    make_policy(vision=spec("vision", "huggingface")).save_pretrained(tmp_path / "policy")
    path = tmp_path / "policy" / "config.json"
    config = json.loads(path.read_text())
    config["parts"]["vision"] |= {"path": "someone/something", "trust_remote_code": True}
    path.write_text(json.dumps(config))
    manifest = path.with_name("manifest.json")
    others = [other for other in path.parent.iterdir() if other != manifest]
    manifest.write_text(files.manifest_text(files.digests(path.parent, others)))  # by a stranger who knows how
    with pytest.raises(ValueError, match="vision needs code of 'someone/something'"):
        Policy.from_pretrained(tmp_path / "policy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs a path .* or a config"),
        ({"config": {"model_type": "bert"}}, "model_type=bert is no encoder of patches"),
    ],
)
def test_what_is_no_encoder_of_images_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HuggingFaceVision(**arguments)


def test_an_unknown_normalisation_has_to_be_said(folder):
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="give image_mean and image_std"):
        HuggingFaceVision(path=str(folder))
    assert HuggingFaceVision(path=str(folder), image_mean=[0.5] * 3, image_std=[0.5] * 3).input_size == [16, 16]
