"""A policy that follows instructions in toy_pick without training: it goes to the pixels of the colour that is named, grasps
and lifts. Differentiable by images, word vectors and state, as a trained one."""

import itertools

import torch
from einops import rearrange, reduce
from torch.nn import functional as F

from tests.factory import DEFAULTS, FEATURES, spec
from vla_mini.envs.toy_pick.drawing import PAINTS, REACH
from vla_mini.envs.toy_pick.phrasings import COLOURS, SHAPES, TRAINING
from vla_mini.policy import Policy
from vla_mini.pretrained import unit_statistics

SENTENCES = [text.format(colour=c, shape=s) for text, c, s in itertools.product(TRAINING, COLOURS, SHAPES)]
SHARPNESS = 200.0  # of the attention to pixels of the named colour


class ColourPolicy(Policy):
    """The default policy but for `predict` and attention: a word's vector begins with the paint of the colour that it names."""

    def __init__(self):
        parts = {kind: spec(kind, name) for kind, name in DEFAULTS.items() if kind != "auxiliary"}
        torch.manual_seed(0)
        super().__init__(
            parts,
            features=FEATURES,
            statistics=unit_statistics(FEATURES),
            horizon=8,
            instructions=SENTENCES,
            source={"env": "vla_mini/ToyPick-v0"},
        )
        self.eval()
        with torch.no_grad():
            self.language.table.weight.zero_()
            for name, paint in PAINTS.items():
                number = self.language.tokenizer.token_to_id(name)
                self.language.table.weight[number, :3] = torch.tensor(paint) / 255

    def look(self, images, word_vectors):
        """Attention over the pixels of the first image, (b, h, w)."""
        paints = word_vectors[..., :3]
        # Times its own sum, so that a word that names no colour, whose paint is zero, has no gradient either.
        named = F.normalize((paints * paints.sum(dim=-1, keepdim=True)).sum(dim=1) + 1e-6, dim=-1)
        likeness = torch.einsum("bchw,bc->bhw", F.normalize(images[:, 0], dim=1), named)
        return torch.softmax(SHARPNESS * likeness.flatten(1), dim=1).view_as(likeness)

    def predict(self, images, word_vectors, state, noise=None, *, word_mask=None, prefix=None):
        attention = self.look(images, word_vectors)
        places = (torch.arange(64) + 0.5) / 64 * 2 * REACH - REACH
        x = torch.einsum("bhw,w->b", attention, places)
        y = -torch.einsum("bhw,h->b", attention, places)
        dx, dy, height, closed = x - state[:, 0], y - state[:, 1], state[:, 2], state[:, 3]
        near = torch.sigmoid(100 * (0.09 - torch.sqrt(dx**2 + dy**2 + 1e-6)))
        low, holds = torch.sigmoid(100 * (0.12 - height)), torch.sigmoid(40 * (closed - 0.75))
        down = torch.tanh((0.35 * (1 - near) - height) / 0.2)
        close = 2 * (1 - (1 - near * low) * (1 - holds)) - 1
        moves = [torch.tanh(offset / 0.12) * (1 - holds) for offset in (dx, dy)]
        action = torch.stack([*moves, (1 - holds) * down + holds, close], dim=-1)
        return action[:, None].repeat(1, self.horizon, 1)

    def context(self, images, word_vectors, state, word_mask=None):
        rows, columns = self.vision.grid
        found = reduce(self.look(images, word_vectors), "b (h y) (w x) -> b h w", "sum", h=rows, w=columns)
        context = super().context(images, word_vectors, state, word_mask)
        return context._replace(attention=rearrange(found, "b h w -> b 1 (h w)").clamp_min(1e-9).log())
