"""Images of a size that an encoder was not made for: every variant brings them to its own in the same way."""

import pytest
import torch
from torch.nn import functional as F

from tests.factory import VARIANTS, spec
from vla_mini.build import build


def make(name: str, **arguments):
    return build(spec("vision", name) | arguments, "vision", image_size=(48, 80)).eval()


@pytest.mark.parametrize("name", VARIANTS["vision"])
def test_what_an_encoder_sees_are_images_of_its_input_size(name):
    vision, images = make(name, input_size=[32, 64]), torch.rand(2, 3, 48, 80)
    resized = F.interpolate(images, size=(32, 64), mode="bilinear", antialias=True)
    tokens = vision(images)
    assert tokens.shape[1] == vision.grid[0] * vision.grid[1] and vision.grid[1] == 2 * vision.grid[0]
    torch.testing.assert_close(tokens, vision(resized), rtol=0, atol=0)


@pytest.mark.parametrize("name", VARIANTS["vision"])
@pytest.mark.parametrize("input_size", [[64], [0, 64], [64, 64, 3]])
def test_a_size_that_is_none_is_refused(name, input_size):
    with pytest.raises(ValueError, match=r"input_size=\[.*is no height and width in pixels"):
        make(name, input_size=input_size)


@pytest.mark.parametrize("name", ["conv", "patch"])
def test_a_size_that_does_not_fit_is_refused_with_the_way_out(name):
    with pytest.raises(ValueError, match=r"\[50, 80\] pixels.* input_size=\[h,w\] resizes"):
        build(spec("vision", name), "vision", image_size=(50, 80))
