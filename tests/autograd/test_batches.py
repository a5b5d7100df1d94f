"""Parts of batches, and the noise that they get."""

import pytest
import torch

from tests.factory import make_batch, make_policy
from vla_mini.autograd.batches import NoiseSlice, seeded, select

CPU = torch.device("cpu")


def test_samples_are_selected_from_every_tensor_of_a_batch():
    batch = make_batch(make_policy(), 5)
    part, one = select(batch, slice(1, 3)), select(batch, 1)
    assert torch.equal(part.observation.images, batch.observation.images[1:3])
    assert torch.equal(part.targets["keyframe"], batch.targets["keyframe"][1:3])
    assert one.actions.shape == batch.actions.shape[1:] and one.targets["has_keyframe"].shape == ()


@pytest.mark.parametrize(
    "draw",
    [
        lambda size: torch.rand(size, 3),
        lambda size: torch.randn((size, 3), dtype=torch.float64),
        lambda size: torch.rand_like(torch.zeros(size, 3, dtype=torch.float64)),
        lambda size: torch.randn_like(torch.zeros(size, 3), dtype=torch.float64),
    ],
)
def test_a_part_of_a_batch_gets_its_rows_of_the_noise(draw):
    def twice(size):
        return torch.stack([draw(size), draw(size)])

    with seeded(0, CPU):
        whole = twice(5)
    assert whole.unique().numel() == whole.numel()
    for first, size in ((0, 2), (2, 1), (3, 2)):
        with seeded(0, CPU), NoiseSlice(first, 5):
            assert torch.equal(twice(size), whole[:, first : first + size])


def test_seeded_restores_the_random_number_generator():
    before = torch.get_rng_state()
    with seeded(0, CPU):
        torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
