"""What the page asks for and what it gets, as JSON.

Images and maps are base64: three bytes a pixel, or one, of 0 to 255, where 255 is the largest value of all cameras.
"""

import base64
import json
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vla_mini.envs.toy_pick.environment import ToyPick
from vla_mini.envs.toy_pick.phrasings import COLOURS
from vla_mini.play.scenes.recording import Recording
from vla_mini.play.scenes.table import PALETTE
from vla_mini.play.session import Session
from vla_mini.utils.errors import one_line

REQUESTS: dict[str, Callable[..., None]] = {
    "reset": Session.reset,
    "step": Session.step,
    "go": Session.go,
    "say": Session.say,
    "change": Session.change,
    "expert": Session.let_expert_act,
    "policy": Session.use_policy,
}


def answer(session: Session, text: str) -> dict[str, Any]:
    """`view` after a request {"do": a name of REQUESTS, "with": [its arguments]}, or {"error": a line} where it is refused."""
    try:
        request = json.loads(text)
        if not isinstance(request, dict) or request.get("do") not in REQUESTS or not isinstance(request.get("with"), list):
            raise ValueError(f"a request is do, one of {', '.join(REQUESTS)}, and with, a list")
        REQUESTS[request["do"]](session, *request["with"])
        return view(session)
    except (ValueError, TypeError, FloatingPointError) as error:
        return {"error": one_line(error)}
    except Exception as error:  # of a simulator, or of torch: the visitor can go on, and the terminal shows where it was raised
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {one_line(error)}"}


def about(session: Session) -> dict[str, Any]:
    """What stays the same as long as a visitor is there."""
    recorded, is_table = (isinstance(session.unwrapped, kind) for kind in (Recording, ToyPick))
    policy = session.policy
    return {
        "env": session.spec.id,
        "cameras": list(policy.features.cameras),
        "size": list(policy.features.image_size),
        "fps": session.spec.features.fps,
        "scene": "Episode" if recorded else "Scene",
        "recorded": recorded,
        "expert": session.spec.has_expert and not recorded,
        "palette": [{"name": name, "seen": name in COLOURS} for name in PALETTE] if is_table else [],
        "policies": list(session.policies),
        "max_steps": session.spec.max_episode_steps,
    }


def view(session: Session) -> dict[str, Any]:
    """The step that is shown."""
    step, look = session.shown, session.shown.look
    assert look is not None
    images = [step.observation["images"][camera] for camera in session.policy.features.cameras]
    return {
        "step": session.position,
        "last": len(session.steps) - 1,
        "seed": session.seed,
        "instruction": step.observation["instruction"],
        "sentences": session.sentences(),
        "images": [_image(image) for image in images],
        "looked_at": look.step,
        "looked_at_images": [] if look.step == session.position else _images_of(session, look.step),
        "attention": _maps(look.attention),
        "pixels": _maps(look.pixels),
        "words": look.words,
        "state": [[name, value, float(raw)] for (name, value), raw in zip(look.state, step.observation["state"], strict=True)],
        "action": _actions(session),
        "policy": look.policy,
        "outcome": {"kind": step.outcome[0], "text": step.outcome[1]},
        "notes": step.notes,
        "handles": step.handles,
        "expert": session.expert,
    }


def _actions(session: Session) -> list[dict[str, Any]]:
    """For each dimension of an action, the policy's and the other one, or null, in raw and in network units."""
    step, policy = session.shown, session.policy
    assert step.look is not None
    state = torch.as_tensor(step.observation["state"])[None].repeat(1, policy.history)
    given = {"policy": step.look.action, "other": step.other}
    rows: list[dict[str, Any]] = [{"name": name} for name in policy.features.action]
    for name, action in given.items():
        scaled = None
        if action is not None:
            normalized = policy.normalization.action(torch.as_tensor(action, dtype=torch.float32)[None, None], state)
            scaled = [[float(raw), float(unit)] for raw, unit in zip(action, normalized[0, 0], strict=True)]
        for i, row in enumerate(rows):
            row[name] = scaled and scaled[i]
    return rows


def _images_of(session: Session, step: int) -> list[dict[str, Any]]:
    images = session.steps[step].observation["images"]
    return [_image(images[camera]) for camera in session.policy.features.cameras]


def _image(image: np.ndarray) -> dict[str, Any]:
    height, width, _ = image.shape
    return {"height": height, "width": width, "bytes": _encode(image)}


def _maps(maps: np.ndarray | None) -> dict[str, Any] | None:
    """None where there are none."""
    if maps is None:
        return None
    largest = float(maps.max())
    scaled = (255 * maps / largest if largest else 0 * maps).astype(np.uint8)
    _, height, width = maps.shape
    return {"height": height, "width": width, "largest": largest, "bytes": [_encode(each) for each in scaled]}


def _encode(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
