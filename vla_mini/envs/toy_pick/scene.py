"""Random generator -> a scene: two to four different objects, one of which the instruction names.

All splits draw their scenes from this one distribution. A split only decides which pairs of colour and shape may be the target,
and in which words the instruction names it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vla_mini.envs.toy_pick.phrasings import COLOURS, HELD_OUT, HELD_OUT_PAIRS, SHAPES, SYNONYM_VERBS, SYNONYMS, TRAINING

PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
SEEN_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)

TABLE = 0.8  # objects lie within [-TABLE, TABLE] in x and y
CLEARANCE = 0.46  # the least distance between two centres: objects never overlap
SHARED_WORDS = 0.6  # the share of scenes whose distractors are sampled to share the target's colour and its shape


class SceneObject(NamedTuple):
    """One object on the table. Lengths in table units: the camera shows [-1.1, 1.1] in both directions."""

    colour: str
    shape: str
    x: float
    y: float
    size: float  # half of its width
    brightness: float

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape


class Scene(NamedTuple):
    """The objects on the table, the instruction, and where the gripper starts (x, y, height)."""

    objects: tuple[SceneObject, ...]
    target: int  # index of the object that the instruction names
    instruction: str
    gripper: tuple[float, float, float]

    @property
    def two_words(self) -> bool:
        """Whether another object shares the target's colour and another its shape, so that both words are needed."""
        colours, shapes = ([item.pair[word] for item in self.objects] for word in (0, 1))
        return colours.count(colours[self.target]) > 1 and shapes.count(shapes[self.target]) > 1


def sample_scene(generator: np.random.Generator, *, split: str = "seen") -> Scene:
    """A scene of `split`, fully determined by the generator."""
    target = _choose(generator, HELD_OUT_PAIRS if split == "held_out_pairs" else SEEN_PAIRS)
    distractors: list[tuple[str, str]] = []
    while all(pair in HELD_OUT_PAIRS for pair in distractors):  # The check `swapped` names one that is not held out.
        distractors = _sample_distractors(generator, target)
    pairs = [target, *distractors]
    order = generator.permutation(len(pairs)).tolist()
    objects = tuple(
        SceneObject(*pairs[i], *point, size=generator.uniform(0.17, 0.2), brightness=generator.uniform(0.85, 1.1))
        for i, point in zip(order, _sample_positions(generator, len(pairs)), strict=True)
    )
    gripper = (*generator.uniform(-TABLE, TABLE, 2).tolist(), generator.uniform(0.6, 1.0))
    return Scene(objects, order.index(0), _instruction(generator, *target, split), gripper)


def swap_target(scene: Scene, generator: np.random.Generator) -> Scene:
    """The same scene with another of its objects named, drawn uniformly from those that are not a held-out pair."""
    choices = [i for i, other in enumerate(scene.objects) if i != scene.target and other.pair not in HELD_OUT_PAIRS]
    target = int(generator.choice(choices))
    return scene._replace(target=target, instruction=_instruction(generator, *scene.objects[target].pair, "seen"))


def _instruction(generator: np.random.Generator, colour: str, shape: str, split: str) -> str:
    """One that names an object in the words of `split`."""
    held_out = {"held_out_phrasings": HELD_OUT, "synonyms": SYNONYM_VERBS, "synonyms_verbs": SYNONYM_VERBS}
    phrasing = _choose(generator, held_out.get(split, TRAINING))
    if split in ("synonyms", "synonyms_colours"):
        colour = _choose(generator, SYNONYMS[colour])
    if split in ("synonyms", "synonyms_shapes"):
        shape = _choose(generator, SYNONYMS[shape])
    return phrasing.format(colour=colour, shape=shape)


def _sample_distractors(generator: np.random.Generator, target: tuple[str, str]) -> list[tuple[str, str]]:
    """One to three other pairs; in SHARED_WORDS of the scenes one shares the target's colour and one its shape."""
    chosen: list[tuple[str, str]] = []
    if generator.random() < SHARED_WORDS:
        for word in (0, 1):
            chosen.append(_choose(generator, [pair for pair in PAIRS if pair[word] == target[word] and pair != target]))
    count = generator.integers(2 if chosen else 1, 4)
    while len(chosen) < count:
        pair = _choose(generator, PAIRS)
        if pair not in (target, *chosen):
            chosen.append(pair)
    return chosen


def _sample_positions(generator: np.random.Generator, count: int) -> list[list[float]]:
    """(x, y) of `count` points of the table, no two closer than CLEARANCE."""
    while True:
        positions = generator.uniform(-TABLE, TABLE, (count, 2))
        distances = np.linalg.norm(positions[:, None] - positions, axis=-1)[np.triu_indices(count, 1)]
        if distances.min() >= CLEARANCE:
            return positions.tolist()


def _choose(generator: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[generator.integers(len(choices))]
