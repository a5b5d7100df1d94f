"""Images of a size that an encoder was not made for: every variant resizes them in the same way."""

import pytest
import torch
from torch.nn import functional as F

from tests.factory import FEATURES, VARIANTS, make_policy, spec


def make(name: str, *, image_size=(48, 80), **settings):
    features = FEATURES._replace(image_size=image_size)
    return make_policy(vision=spec("vision", name) | settings, features=features).vision


@pytest.mark.parametrize("name", VARIANTS["vision"])
def test_images_are_resized_to_input_size(name):
    vision, images = make(name, input_size=[32, 64]), torch.rand(2, 3, 48, 80)
    resized = F.interpolate(images, size=(32, 64), mode="bilinear", antialias=True)
    tokens = vision(images)
    assert tokens.shape[1] == vision.grid[0] * vision.grid[1] and vision.grid[1] == 2 * vision.grid[0]
    torch.testing.assert_close(tokens, vision(resized), rtol=0, atol=0)
    for wrong in ([64], [0, 64], [64, 64, 3]):
        with pytest.raises(ValueError, match=r"input_size=\[.* is not a height and a width in pixels"):
            make(name, input_size=wrong)


@pytest.mark.parametrize("name", ["conv", "patch"])
def test_a_size_that_does_not_fit_is_refused_with_the_remedy(name):
    with pytest.raises(ValueError, match=r"\[50, 80\] pixels.* input_size=\[h,w\] resizes"):
        make(name, image_size=(50, 80))
