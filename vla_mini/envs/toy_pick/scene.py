"""Random generator -> a scene: two to four objects, never two alike, one of them named by an instruction.

Every split draws its scenes from this one distribution; a split only decides which pairs may be the target and which
words name it.
"""

from typing import NamedTuple

import numpy as np

from vla_mini.envs.toy_pick.wordings import COLOURS, HELD_OUT, HELD_OUT_PAIRS, SHAPES, SYNONYM_VERBS, SYNONYMS, TRAINING

SPLITS = ("seen", "held_out_pairs", "held_out_wordings")
# Words never heard in training: colour, shape and verb together, or one of them alone.
SYNONYM_SPLITS = ("synonyms", "synonyms_colours", "synonyms_shapes", "synonyms_verbs")
PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
SEEN_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)

TABLE = 0.8  # objects lie within [-TABLE, TABLE] in x and y
CLEARANCE = 0.46  # the least distance between two centres: objects never overlap
LOOK_ALIKES = 0.6  # the share of scenes in which both words are needed by construction


class Thing(NamedTuple):
    """One object on the table. Lengths in table units: the camera sees [-1.1, 1.1] in both directions."""

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
    """What lies on the table, what is asked for, and where the gripper begins (x, y, height)."""

    things: tuple[Thing, ...]
    target: int  # index of the thing that the instruction names
    instruction: str
    gripper: tuple[float, float, float]

    @property
    def two_words(self) -> bool:
        """Whether another object shares the target's colour and another its shape, so that both words are needed."""
        target = self.things[self.target]
        others = [thing for i, thing in enumerate(self.things) if i != self.target]
        return any(o.colour == target.colour for o in others) and any(o.shape == target.shape for o in others)


def sample_scene(generator: np.random.Generator, *, split: str = "seen") -> Scene:
    """A scene of `split`, fully determined by the generator."""
    if split not in (*SPLITS, *SYNONYM_SPLITS):
        raise ValueError(f"split={split!r} is not one of {', '.join((*SPLITS, *SYNONYM_SPLITS))}")
    targets = HELD_OUT_PAIRS if split == "held_out_pairs" else SEEN_PAIRS
    target = targets[generator.integers(len(targets))]
    bystanders = _sample_bystanders(generator, target)
    # At least one bystander can be named instead of the target (the `swapped` check names no held-out pair).
    while all(pair in HELD_OUT_PAIRS for pair in bystanders):
        bystanders = _sample_bystanders(generator, target)
    pairs = [target, *bystanders]
    order = generator.permutation(len(pairs))
    places = _sample_places(generator, len(pairs))
    things = tuple(
        Thing(*pairs[i], *map(float, place), size=generator.uniform(0.17, 0.2), brightness=generator.uniform(0.85, 1.1))
        for i, place in zip(order, places, strict=True)
    )
    gripper = (*map(float, generator.uniform(-TABLE, TABLE, 2)), float(generator.uniform(0.6, 1.0)))
    return Scene(things, int(np.flatnonzero(order == 0)[0]), _name(generator, target, split), gripper)


def swap_target(scene: Scene, generator: np.random.Generator) -> Scene:
    """The same scene with another of its objects named, drawn uniformly from those that are no held-out pair."""
    choices = [i for i, thing in enumerate(scene.things) if i != scene.target and thing.pair not in HELD_OUT_PAIRS]
    target = int(generator.choice(choices))
    colour, shape = scene.things[target].pair
    wording = TRAINING[generator.integers(len(TRAINING))]
    return scene._replace(target=target, instruction=wording.format(colour=colour, shape=shape))


def _name(generator: np.random.Generator, target: tuple[str, str], split: str) -> str:
    """An instruction that names `target` in the words of `split`."""
    wordings = {"held_out_wordings": HELD_OUT, "synonyms": SYNONYM_VERBS, "synonyms_verbs": SYNONYM_VERBS}.get(split, TRAINING)
    wording = wordings[generator.integers(len(wordings))]
    colour, shape = target
    if split in ("synonyms", "synonyms_colours"):
        colour = SYNONYMS[colour][generator.integers(len(SYNONYMS[colour]))]
    if split in ("synonyms", "synonyms_shapes"):
        shape = SYNONYMS[shape][generator.integers(len(SYNONYMS[shape]))]
    return wording.format(colour=colour, shape=shape)


def _sample_bystanders(generator: np.random.Generator, target: tuple[str, str]) -> list[tuple[str, str]]:
    """One to three other pairs; in LOOK_ALIKES of the scenes one shares the target's colour and one its shape."""
    chosen: list[tuple[str, str]] = []
    if generator.random() < LOOK_ALIKES:
        same_colour = [pair for pair in PAIRS if pair[0] == target[0] and pair != target]
        same_shape = [pair for pair in PAIRS if pair[1] == target[1] and pair != target]
        chosen = [same_colour[generator.integers(len(same_colour))], same_shape[generator.integers(len(same_shape))]]
        count = int(generator.integers(2, 4))
    else:
        count = int(generator.integers(1, 4))
    while len(chosen) < count:
        pair = PAIRS[generator.integers(len(PAIRS))]
        if pair != target and pair not in chosen:
            chosen.append(pair)
    return chosen


def _sample_places(generator: np.random.Generator, count: int) -> np.ndarray:
    """`count` points of the table, (count, 2), no two closer than CLEARANCE."""
    while True:
        places = generator.uniform(-TABLE, TABLE, (count, 2))
        distances = np.linalg.norm(places[:, None] - places[None], axis=-1)[np.triu_indices(count, 1)]
        if distances.min() >= CLEARANCE:
            return places
