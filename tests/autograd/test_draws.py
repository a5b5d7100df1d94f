import pytest
import torch

from vla_mini.autograd.draws import Draws, seeded

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "draw",
    [
        lambda size: torch.rand(size, 3),
        lambda size: torch.randn((size, 3), dtype=torch.float64),
        lambda size: torch.rand_like(torch.zeros(size, 3, dtype=torch.float64)),
        lambda size: torch.randn_like(torch.zeros(size, 3), dtype=torch.float64),
    ],
)
def test_a_part_of_the_batch_gets_its_part_of_the_draws(draw):
    def twice(size):
        return torch.stack([draw(size), draw(size)])

    with seeded(0, CPU):
        whole = twice(5)
    assert whole.unique().numel() == whole.numel()
    for first, size in ((0, 2), (2, 1), (3, 2)):
        with seeded(0, CPU), Draws(first, 5):
            assert torch.equal(twice(size), whole[:, first : first + size])


def test_nothing_is_drawn_outside():
    before = torch.get_rng_state()
    with seeded(0, CPU):
        torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
