"""What a visitor may change on toy_pick's table, and which of it no scene of training shows.

Places are fractions of the image, x to the right and y down, in [0, 1].
"""

import re
from typing import Any

import numpy as np

from vla_mini.envs.toy_pick.drawing import FURTHER_PAINTS, PAINTS, REACH
from vla_mini.envs.toy_pick.environment import LIFTED, ToyPick
from vla_mini.envs.toy_pick.phrasings import COLOURS, HELD_OUT_PAIRS, SHAPES, SYNONYMS
from vla_mini.envs.toy_pick.scene import CLEARANCE, TABLE

PALETTE = (*PAINTS, *FURTHER_PAINTS)
WORDS = {word: word for word in (*PALETTE, *SHAPES)} | {synonym: word for word, all_ in SYNONYMS.items() for synonym in all_}
EDGE = 1.05  # objects can be dragged so far from the centre: they stay in the image
GRIPPER = -1  # its index among the handles


def handles(env: ToyPick) -> list[dict[str, Any]]:
    """What can be dragged: the objects that lie on the table, and the gripper."""
    found = [
        {"index": i, "label": " ".join(item.pair), "colour": item.colour, "radius": item.size / (2 * REACH)}
        | _place(env.object_positions[i])
        for i, item in enumerate(env.scene.objects)
        if i != env.held
    ]
    return [*found, {"index": GRIPPER, "label": "gripper", "colour": None, "radius": 0.05} | _place(env.position)]


def move(env: ToyPick, index: int, x: float, y: float) -> None:
    """Move an object, or the gripper at its height. ValueError for an object that is held, and for one that there is not."""
    edge = 1.0 if index == GRIPPER else EDGE
    position = np.clip([(2 * x - 1) * REACH, (1 - 2 * y) * REACH], -edge, edge)
    if not np.isfinite(position).all():
        raise ValueError(f"x={x}, y={y} is no place in the image")
    if index == GRIPPER:
        env.position[:2] = position
    else:
        env.change_object(_checked(env, index), position=tuple(position))


def recolour(env: ToyPick, index: int, colour: str) -> None:
    """Paint an object. ValueError for a colour that there is not."""
    if colour not in PALETTE:
        raise ValueError(f"colour={colour!r} is not one of {', '.join(PALETTE)}")
    env.change_object(_checked(env, index), colour=colour)
    say(env, env.instruction)  # which may now name another object, or none


def say(env: ToyPick, instruction: str) -> None:
    """Make the object that the instruction names the target. Where it names none of the scene, or several, there is none."""
    env.instruction = instruction
    words = {WORDS[word] for word in re.findall(r"\w+", instruction.lower()) if word in WORDS}
    asked = [words & set(names) for names in (PALETTE, SHAPES)]
    fitting = [i for i, item in enumerate(env.scene.objects) if all(item.pair[k] in asked[k] for k in (0, 1) if asked[k])]
    env.scene = env.scene._replace(target=fitting[0] if words and len(fitting) == 1 else -1)


def sentences(env: ToyPick) -> list[str]:
    """One for each object."""
    return [f"pick up the {' '.join(item.pair)}" for item in env.scene.objects]


def unusual(env: ToyPick) -> list[str]:
    """What no scene of training shows, a sentence each."""
    found, objects = [], env.scene.objects
    lying = [i for i in range(len(objects)) if i != env.held]
    for i, item in enumerate(objects):
        name = " ".join(item.pair)
        if item.colour not in COLOURS:
            found.append(f"Nothing is {item.colour} in training.")
        if i in lying and np.abs(env.object_positions[i]).max() > TABLE:
            found.append(f"The {name} lies nearer to the edge than any object does in training.")
        if i == env.scene.target and item.pair in HELD_OUT_PAIRS:
            found.append(f"Training never asks for a {name}: this pair of words is held out.")
    if len({item.pair for item in objects}) < len(objects):
        found.append("Two objects have the same colour and shape, which happens in no scene of training.")
    for n, i in enumerate(lying):
        for j in lying[:n]:
            if np.linalg.norm(env.object_positions[i] - env.object_positions[j]) < CLEARANCE:
                pair = " and the ".join(" ".join(objects[k].pair) for k in (j, i))
                found.append(f"The {pair} are nearer to each other than objects are at the start of an episode in training.")
    return found


def outcome(env: ToyPick, *, over: bool) -> tuple[str, str]:
    """ "running", "success", "failure" or "over" (neither), and a sentence that says what happened."""
    objects, target, lifted = env.scene.objects, env.scene.target, env.held if env.position[2] >= LIFTED else None
    named = f"the {' '.join(objects[target].pair)}" if target >= 0 else None
    if lifted is not None:
        what = f"the {' '.join(objects[lifted].pair)}"
        if named is None:
            return (
                "over",
                f"It lifted {what}. The instruction names no single object of this scene, so it is neither right nor wrong.",
            )
        if lifted == target:
            return "success", f"Success: it lifted {what}."
        return "failure", f"Wrong object: it lifted {what}, and the instruction names {named}."
    if over:
        return "failure", f"Time is up: after {env.env_spec.max_episode_steps} steps nothing is lifted."
    if named is None:
        empty = not env.instruction.strip()
        return "running", "There is no instruction." if empty else "The instruction names no single object of this scene."
    return "running", f"The instruction names {named}."


def _checked(env: ToyPick, index: int) -> int:
    """ValueError unless it is the index of an object on the table."""
    if not 0 <= index < len(env.scene.objects):
        raise ValueError(f"index={index} is no object of this scene, which has {len(env.scene.objects)}")
    if index == env.held:
        raise ValueError(f"the {' '.join(env.scene.objects[index].pair)} is held: move the gripper")
    return index


def _place(position: np.ndarray) -> dict[str, float]:
    """Table coordinates -> fractions of the image."""
    return {"x": float(position[0] + REACH) / (2 * REACH), "y": float(REACH - position[1]) / (2 * REACH)}
