"""Where image tokens lie: grid of patches -> coordinates. What vision, trunk and auxiliary losses agree on."""

import torch
from jaxtyping import Float
from torch import Tensor


def grid_positions(grid: tuple[int, int]) -> Float[Tensor, "n 2"]:
    """Centres of a (rows, columns) grid in row-major order, in [-1, 1]: x to the right, y upwards, as in a plot.

    An image's rows go down; a robot's y axis, seen from above, most often goes up. Hence y = -row.
    """
    rows, columns = grid
    y = 1 - (2 * torch.arange(rows) + 1) / rows
    x = (2 * torch.arange(columns) + 1) / columns - 1
    return torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)], dim=-1).reshape(-1, 2)
