"""A policy that solves most scenes of toy_pick without training: it finds what the instruction names by its colour and a
template of its shape, and moves by the rules of the environment's expert. It can be exported."""

from types import SimpleNamespace

import numpy as np
import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F

from vla_mini.envs.toy_pick.drawing import PAINTS, REACH, SCALE, SIZE, object_mask
from vla_mini.envs.toy_pick.environment import GRASP_HEIGHT, GRASP_RADIUS, STEP
from vla_mini.envs.toy_pick.phrasings import COLOURS, SHAPES, TRAINING
from vla_mini.envs.toy_pick.scene import SceneObject
from vla_mini.envs.toy_pick.spec import SPEC
from vla_mini.language.table import TableLanguage
from vla_mini.parts import ActingDefaults, FitData, ObservationSpec
from vla_mini.policy import Policy
from vla_mini.types import Context


class MatchingPolicy(Policy):
    """Its word vectors say which colour and which shape a word names; its attention map is where template and image agree."""

    horizon, takes_prefix, device = 2, False, torch.device("cpu")

    def __init__(self):
        nn.Module.__init__(self)
        self.features, self.history, self.acting = SPEC.features, 1, ActingDefaults(execute=1)
        self.ablate, self.source, self.lora = (), {"env": SPEC.id}, None
        self.letters = {"k": ("top",), "c": 3, "h": SIZE, "w": SIZE, "s": SPEC.features.state}
        self.trunk, self.action = SimpleNamespace(num_queries=1), ExpertHead()
        names = {"state_mean": 0, "state_std": 1, "action_offset": 0, "action_scale": 1}
        units = {name: torch.full((4,), float(value)) for name, value in names.items()}
        self.normalization = SimpleNamespace(**units, unnormalize_action=lambda action, state: action)
        self.language = TableLanguage(ObservationSpec(("top",), (SIZE, SIZE), SPEC.features.state), width=10)
        sentences = [text.format(colour=c, shape=s) for text in TRAINING for c in COLOURS for s in SHAPES]
        self.language.fit(FitData(tuple(sentences), torch.zeros(0, 2, 4), None))
        vectors = torch.zeros_like(self.language.table.weight)
        for index, word in enumerate((*COLOURS, *SHAPES)):
            vectors[self.language.tokenizer.token_to_id(word), index] = 1
        self.language.table.weight.data = vectors
        paints = torch.tensor([PAINTS[colour] for colour in COLOURS], dtype=torch.float32)
        self.paints = nn.Buffer(F.normalize(paints, dim=1))
        middle = REACH / SIZE  # the centre of a pixel beside the image's middle
        masks = [object_mask(SceneObject("red", shape, middle, -middle, 0.185, 1.0)) for shape in SHAPES]
        self.templates = nn.Buffer(2 * torch.from_numpy(np.float32(masks))[:, None, 25:40, 25:40] - 1)
        pixels = (torch.arange(SIZE) + 0.5) / SCALE - REACH
        self.positions = nn.Buffer(torch.stack([pixels.repeat(SIZE), -pixels.repeat_interleave(SIZE)], dim=1))

    def context(self, images, word_vectors, state, word_mask=None):
        colours, shapes = word_vectors.amax(dim=1).split([len(COLOURS), len(SHAPES)], dim=1)
        likeness = torch.einsum("b c h w, p c -> b p h w", F.normalize(images[:, 0], dim=1), self.paints)
        painted = (torch.sigmoid(400 * (likeness - 0.985)) * colours[..., None, None]).sum(dim=1, keepdim=True)
        scores = (F.conv2d(painted, self.templates, padding=7) * shapes[..., None, None]).sum(dim=1)
        attention = rearrange(scores, "b h w -> b 1 (h w)").log_softmax(dim=-1)
        position = (attention.exp() @ self.positions)[:, 0]
        tokens = torch.cat([position, state], dim=1)[:, None]
        return Context(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool), attention)


class ExpertHead(nn.Module):
    """Moves over the position, down, closes and lifts; with nothing held it lifts, too."""

    exportable, needs_noise = True, False

    def predict(self, context, noise=None):
        position, place, height, closed = context.tokens[:, 0].split([2, 2, 1, 1], dim=1)
        offset = position - place
        near = offset.norm(dim=1, keepdim=True)
        goal = torch.where(near < GRASP_RADIUS, 0.0, 0.35)
        motion = torch.clamp(torch.cat([offset, goal - height], dim=1) / torch.tensor(STEP, dtype=torch.float32), -1, 1)
        ready = (near < 0.6 * GRASP_RADIUS) & (height < 0.7 * GRASP_HEIGHT)
        reach = torch.cat([motion, torch.where(ready, 1.0, -1.0)], dim=1)
        action = torch.where(closed > 0.75, torch.tensor([0.0, 0.0, 1.0, 1.0]), reach)
        return action[:, None].repeat(1, 2, 1)
