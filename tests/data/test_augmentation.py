"""Augmented images: which samples change in the same way, by how much, and that only seed and batch number determine it."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.factory import CONFIGS
from vla_mini.data.augmentation import Augmentation

SIZE = (12, 16)
V2 = "torchvision.transforms.v2."
SHIFT = {"_target_": V2 + "RandomCrop", "padding": 2, "padding_mode": "edge"}


def default(**changes) -> Augmentation:
    settings = OmegaConf.to_container(OmegaConf.load(CONFIGS / "augmentation" / "default.yaml")) | changes
    return Augmentation(**{"seed": 0, "image_size": SIZE} | settings)


def images(size: int = 8, views: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (size, views, 3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_all_samples_and_views_of_a_part_change_in_the_same_way_and_parts_differ():
    same = images(1, 1).expand(8, 2, 3, *SIZE)
    changed = default(draws=4)(same, batch=0)
    assert changed.shape == same.shape and changed.dtype == torch.uint8
    parts = changed.unflatten(0, (4, 2)).flatten(1, 2)  # all samples and views of a part
    assert (parts == parts[:, :1]).all()
    assert all(not torch.equal(parts[i], parts[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize(("size", "draws", "distinct"), [(6, 1, 1), (6, 6, 6), (6, 100, 6), (5, 2, 2)])
def test_there_are_as_many_parts_as_wanted_and_samples_allow(size, draws, distinct):
    changed = default(draws=draws)(images(1).expand(size, -1, -1, -1, -1), batch=0)
    assert len({tuple(image.flatten().tolist()) for image in changed}) == distinct


def test_a_shift_is_one_of_those_done_by_hand():
    original = images(16, 1)
    changed = Augmentation({"shift": SHIFT}, draws=16, seed=1, image_size=SIZE)(original, batch=3)
    padded = np.pad(original.numpy(), [(0, 0)] * 3 + [(2, 2)] * 2, mode="edge")
    found = set()
    for i, image in enumerate(changed[:, 0].numpy()):
        places = [(y, x) for y in range(5) for x in range(5) if np.array_equal(padded[i, 0, :, y : y + 12, x : x + 16], image)]
        assert len(places) == 1
        found |= set(places)
    assert len(found) > 5


def test_the_default_keeps_colours_recognizable():
    """Plain colours stay nearer to themselves than to one another."""
    colours = torch.tensor([[230, 40, 40], [40, 180, 60], [50, 80, 230], [240, 210, 50], [150, 60, 190], [240, 240, 240]])
    plain = colours[:, None, :, None, None].expand(6, 1, 3, *SIZE).to(torch.uint8)
    for batch in range(50):
        means = default(draws=1)(plain, batch=batch).float().mean(dim=(1, 3, 4))
        distances = torch.cdist(means / means.norm(dim=1, keepdim=True), colours / colours.float().norm(dim=1, keepdim=True))
        assert (distances.argmin(dim=1) == torch.arange(6)).all()


def test_only_seed_batch_and_rank_determine_the_change():
    augment = default()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = augment(images(), batch=5)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left as it was"
    torch.manual_seed(2)
    assert torch.equal(default()(images(), batch=5), first)
    for other in (augment(images(), batch=6), augment(images(), batch=5, rank=1), default(seed=1)(images(), batch=5)):
        assert not torch.equal(other, first)


def test_none_in_the_place_of_a_transform_leaves_it_out():
    assert torch.equal(Augmentation({"shift": None}, draws=2, seed=0, image_size=SIZE)(images(), batch=0), images())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"_target_": V2 + "GaussianBlur", "kernel_size": 4}, r"augmentation.transforms.mine: Kernel size"),
        ({"_target_": V2 + "ColorJitter", "hue": 0.7}, r"augmentation.transforms.mine: .*hue"),
        ({"_target_": V2 + "Grayscale"}, r"transforms.mine changes uint8 \(3, 12, 16\) to torch.uint8 \(1, 12, 16\)"),
        ({"_target_": V2 + "RandomZoomOut", "p": 0.3}, r"transforms.mine changes uint8 \(3, 12, 16\) to torch.uint8 \(3, "),
        ({"_target_": V2 + "RGB", "colour": 1}, r"augmentation.transforms.mine: .*colour"),
    ],
)
def test_a_transform_that_cannot_work_is_refused_in_one_line(spec, message):
    with pytest.raises(ValueError, match=message) as refused:
        Augmentation({"shift": SHIFT, "mine": spec}, draws=1, seed=0, image_size=SIZE)
    assert "\n" not in str(refused.value)
