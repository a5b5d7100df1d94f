"""Augmented images: which samples change in the same way, by how much, and that only seed and batch number determine it."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.factory import CONFIGS
from vla_mini.data.augmentation import Augmentation, Mirror, flipped
from vla_mini.testing import make_batch, make_policy
from vla_mini.utils.features import Features

SIZE = (12, 16)
V2 = "torchvision.transforms.v2."
SHIFT = {"_target_": V2 + "RandomCrop", "padding": 2, "padding_mode": "edge"}


def default(**changes) -> Augmentation:
    settings = OmegaConf.to_container(OmegaConf.load(CONFIGS / "augmentation" / "default.yaml")) | changes
    del settings["mirror"]
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


# ---- a mirror

FEATURES = Features(cameras=("top",), image_size=(8, 8), state=("x", "y", "z"), action=("x", "y"), fps=10)
VALUES = {"x": ("y", -1, 512), "y": ("x", -1, 512)}


def test_a_point_in_the_mirror_is_where_its_mirrored_values_say():
    """A pixel at (x, y), in images of 8 x 8, is drawn where the state says, in the original and in the mirror."""
    policy = make_policy(features=FEATURES, history=2, auxiliary=None)
    batch = make_batch(policy, 6)
    state, images = batch.observation.state, torch.zeros_like(batch.observation.images)
    state[:] = torch.randint(0, 8, state.shape).float()
    for sample, (x, y) in enumerate(state[:, :2].int().tolist()):
        images[sample, :, :, y, x] = 255
    batch = batch._replace(observation=batch.observation._replace(images=images))
    for flip, values in {
        "antidiagonal": {"x": ("y", -1, 7), "y": ("x", -1, 7)},
        "diagonal": {"x": ("y", 1, 0), "y": ("x", 1, 0)},
        "left_right": {"x": ("x", -1, 7)},
        "up_down": {"y": ("y", -1, 7)},
    }.items():
        mirrored = Mirror(flip, values, features=FEATURES)(batch)
        found = mirrored.observation
        assert torch.equal(found.state[::2], state[::2]) and torch.equal(found.images[::2], images[::2])
        assert not torch.equal(found.state[1::2], state[1::2])
        assert torch.equal(found.state[:, [2, 5]], state[:, [2, 5]])  # z, of both frames
        for sample, (x, y) in enumerate(found.state[:, :2].int().tolist()):
            assert found.images[sample, 0, 0, y, x] == 255, flip
        again = Mirror(flip, values, features=FEATURES)(mirrored)
        torch.testing.assert_close(again.actions, batch.actions)
        assert torch.equal(again.observation.state, state)


def test_actions_are_mirrored_as_states_are():
    batch = make_batch(make_policy(features=FEATURES, auxiliary=None), 4)
    found, before = Mirror("antidiagonal", VALUES, features=FEATURES)(batch).actions, batch.actions
    torch.testing.assert_close(found[1::2], 512 - before[1::2].flip(-1))
    assert torch.equal(found[::2], before[::2])


def test_the_target_of_pusht_is_the_same_in_the_mirror_of_its_experiment():
    """Of the drawn scene only the agent and the block, which the random scene places elsewhere, differ."""
    pytest.importorskip("gym_pusht")
    from vla_mini import envs

    experiment = OmegaConf.load(CONFIGS / "experiment" / "pusht.yaml").augmentation.mirror
    env = envs.make("vla_mini/PushT-v0")
    images = [torch.from_numpy(env.reset(seed=seed)[0]["images"]["image"]).movedim(-1, 0) for seed in range(8)]
    background = torch.stack(images).median(dim=0).values
    different = (flipped(background, experiment.flip).int() - background.int()).abs().amax(dim=0) > 30
    other = (flipped(background, "diagonal").int() - background.int()).abs().amax(dim=0) > 30
    assert different.float().mean() < 0.01 < 0.03 < other.float().mean()


@pytest.mark.parametrize(
    ("flip", "values", "message"),
    [
        ("up_down", {"yy": ("y", -1, 0)}, "augmentation.mirror.values: there is no 'yy'; did you mean 'y'?"),
        ("up_down", {"y": ("z", -1, 0)}, "augmentation.mirror.values.y: mirrored twice, it does not become what it was"),
        ("up_down", {"y": ("y", -2, 0)}, "augmentation.mirror.values.y: mirrored twice, it does not become what it was"),
        ("up_down", {"y": ("y", 1, 3)}, "augmentation.mirror.values.y: mirrored twice, it does not become what it was"),
    ],
    ids=["name", "source", "factor", "offset"],
)
def test_a_mirror_that_cannot_be_is_refused(flip, values, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        Mirror(flip, values, features=FEATURES)


def test_a_mirror_along_a_diagonal_needs_square_images():
    with pytest.raises(ValueError, match="flip=diagonal needs square images, not 8 x 6 pixels"):
        Mirror("diagonal", {}, features=FEATURES._replace(image_size=(8, 6)))
