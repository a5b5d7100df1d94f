"""The encoders written here: a conv map or patches become tokens, row by row."""

import pytest
import torch

from tests.factory import spec
from vla_mini.build import build


@pytest.mark.parametrize("name", ["conv", "patch"])
def test_a_change_in_one_cell_changes_its_own_token_most(name):
    torch.manual_seed(0)
    vision = build(spec("vision", name), "vision", image_size=(32, 48))
    rows, columns = vision.grid
    cell = 32 // rows
    images = torch.rand(1, 3, 32, 48)
    tokens = vision(images)
    assert tokens.shape == (1, rows * columns, vision.width)
    for row, column in [(0, 0), (1, 3), (rows - 1, columns - 2)]:
        other = images.clone()
        other[:, :, cell * row : cell * (row + 1), cell * column : cell * (column + 1)] += 0.5
        change = (vision(other) - tokens).norm(dim=-1)[0]
        assert change.argmax() == row * columns + column
