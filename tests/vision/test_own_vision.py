"""The encoders written here: a convolutional map or patches become tokens, row by row."""

import pytest
import torch

from tests.factory import FEATURES, make_policy


@pytest.mark.parametrize("name", ["conv", "patch"])
def test_a_change_in_one_cell_changes_its_own_token_most(name):
    vision = make_policy(vision=name, features=FEATURES._replace(image_size=(32, 48))).vision
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
