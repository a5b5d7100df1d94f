"""Feature maps of torchvision's networks, up to the layer with the given stride; weights from a file."""

import copy
import os
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from tests.factory import FEATURES, make_observation, make_policy
from vla_mini.policy import Policy
from vla_mini.vision.torchvision import TorchvisionVision, image_statistics


def make(*, image_size=(64, 64), **settings) -> TorchvisionVision:
    """The encoder, fitted as in a policy."""
    target = {"_target_": "vla_mini.vision.torchvision.TorchvisionVision"}
    return make_policy(vision=target | settings, features=FEATURES._replace(image_size=image_size)).vision


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    network = models.resnet18(weights=None)
    for name, buffer in network.named_buffers():  # other statistics than those of a new network
        if "running" in name:
            buffer.copy_(0.1 * torch.rand_like(buffer) + (0.05 if "var" in name else -0.05))
    return network.eval()


@pytest.fixture(params=["resnet.safetensors", "resnet.pth"])
def path(request, resnet, tmp_path):
    save = save_file if request.param.endswith("safetensors") else torch.save
    save(resnet.state_dict(), tmp_path / request.param)
    return str(tmp_path / request.param)


def test_pretrained_tokens_are_the_networks_feature_map_row_by_row(resnet, path):
    vision = make(path=path, stride=8).double().train()  # batch norms keep their statistics
    resnet, images = copy.deepcopy(resnet).double(), torch.rand(2, 3, 64, 64, dtype=torch.float64)
    x = (images - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2"):
        x = getattr(resnet, name)(x)
    assert vision.grid == (8, 8) and vision.width == 128
    tokens = vision(images)
    assert x.std() > 0.1
    torch.testing.assert_close(tokens[:, 8 * 3 + 5], x[:, :, 3, 5], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(tokens, x.flatten(2).transpose(1, 2), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["efficientnet_v2_l", "googlenet", "inception_v3", "convnext_tiny"])
def test_images_are_normalised_as_each_networks_weights_need(name):
    """By torchvision's preset; two networks then transform their input themselves."""
    images = torch.rand(2, 3, 32, 32)
    preset = models.get_model_weights(name).DEFAULT.transforms(crop_size=32, resize_size=32)
    expected = preset(images)
    if name in ("googlenet", "inception_v3"):
        network = models.get_model(name, weights=None, init_weights=False, transform_input=True)
        expected = network._transform_input(expected)
    mean, std = (torch.tensor(values)[:, None, None] for values in image_statistics(name))
    torch.testing.assert_close((images - mean) / std, expected)


def test_a_saved_policy_does_not_need_the_file(path, tmp_path):
    policy = make_policy(vision={"_target_": "vla_mini.vision.torchvision.TorchvisionVision", "path": path})
    policy.save_pretrained(tmp_path / "policy")
    os.remove(path)
    loaded = Policy.from_pretrained(tmp_path / "policy")
    observation = make_observation(policy)
    torch.testing.assert_close(loaded.act(observation), policy.act(observation), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "convnext_tiny", "shufflenet_v2_x0_5", "googlenet"])
@pytest.mark.parametrize("stride", [8, 16])
def test_networks_of_other_families(name, stride):
    with warnings.catch_warnings(action="error"):
        vision = make(name=name, stride=stride)
    assert vision.grid == (64 // stride, 64 // stride)
    assert vision(torch.rand(1, 3, 64, 64)).shape == (1, vision.grid[0] * vision.grid[1], vision.width)


def test_a_layer_can_be_chosen_and_images_resized():
    vision = make(layer="layer3", input_size=[96, 128])
    assert vision.grid == (6, 8) and vision.width == 256
    assert vision(torch.rand(1, 3, 64, 64)).shape == (1, 48, 256)


def test_sides_that_the_stride_does_not_divide_are_rounded():
    vision = make(image_size=(100, 80), stride=8)
    assert vision.grid == (13, 10) and vision.width == 128
    assert vision(torch.rand(1, 3, 100, 80)).shape == (1, 130, 128)


def test_no_norm_mixes_the_samples_of_a_batch():
    vision = make().train()
    images = torch.rand(4, 3, 64, 64)
    torch.testing.assert_close(vision(images)[:1], vision(images[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet81"}, "name='resnet81' is not a classification network of torchvision; did you mean 'resnet18'"),
        ({"layer": "layr2"}, "layer='layr2' is not in the network; did you mean 'layer2'"),
        (
            {"stride": 5},
            r"stride=5: for input_size=\[64, 64\] the network has no maps .* of that stride; choose from \[2, 4, 8, 16, 32",
        ),
        ({"name": "vit_b_16"}, "name='vit_b_16' is a transformer without maps"),
        ({"name": "swin_t", "layer": "features.3"}, "name='swin_t' is a transformer"),
        ({"name": "convnext_tiny", "layer": "features.1.0.block.2"}, "layer='features.1.0.block.2' does not give a map"),
        ({"name": "inception_v3", "input_size": [32, 32]}, r"input_size=\[32, 32\] does not suit this network"),
        ({"path": "nowhere.pth"}, "path=nowhere.pth: there is no such file"),
        ({"path": __file__}, "holds no state_dict of ResNet"),
    ],
)
def test_a_mistake_is_one_clear_line(settings, message):
    with pytest.raises(ValueError, match=message) as refused:
        make(**settings)
    assert "\n" not in str(refused.value)
