"""Predict a chunk of actions with a saved policy: an image, an instruction and a state in, one JSON object out.

It is the first chunk of a `Controller`.

`mode` is the mode of autograd: `no_grad` (as in acting), `inference_mode`, or `grad`, which keeps the graph. The actions are
the same; the time, and the bytes kept for a backward pass, are not.

    python scripts/infer.py policy=DIR image=scene.png instruction="pick up the red cube" state=[0.1,0.2,1.0,0.0]
    python scripts/infer.py policy=DIR image=scene.png instruction="lift the blue ball" state=[0,0,1,0] mode=grad
"""

import json
import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from vla_mini import config

if TYPE_CHECKING:
    from torch import Tensor

    from vla_mini.config.command_settings import InferSettings


@config.main("infer")
def main(settings: "InferSettings") -> None:
    from vla_mini import Controller
    from vla_mini.autograd.inference import MODES, count_saved_bytes
    from vla_mini.export import ExportedPolicy, load_policy

    if not settings.instruction.strip():
        raise ValueError("instruction='' is empty: give a task, such as 'pick up the red cube'")
    options = {"num_steps": settings.num_steps, "trust_remote_code": settings.trust_remote_code}
    policy = load_policy(settings.policy, **options)
    exported = isinstance(policy, ExportedPolicy)
    if exported and settings.mode != "no_grad":
        raise ValueError(f"mode={settings.mode}: an exported policy is no graph of autograd; give mode=no_grad")
    controller = Controller(policy)
    for frame in reversed(read_frames(settings, policy)):  # the oldest first
        observation = controller.observe(frame)
    if unknown := policy.unknown_words(settings.instruction):
        words = ", ".join(map(repr, unknown))
        print(f"infer: warning: the words {words} are not in the policy's vocabulary: they share one vector", file=sys.stderr)

    def predict() -> "Tensor":
        controller.reset(settings.seed)  # the same noise each time
        return controller.predict(observation)

    with MODES[settings.mode]():
        predict()  # the first pass also pays for setting up
        start = time.perf_counter()
        actions = predict()
        milliseconds = 1000 * (time.perf_counter() - start)
        with nullcontext([]) if exported else count_saved_bytes(policy) as saved:  # a pass of its own: counting takes time
            predict()
    answer = {
        "actions": actions[0].tolist(),
        "action_names": policy.features.action,
        "instruction": settings.instruction,
        "mode": settings.mode,
        "requires_grad": actions.requires_grad,
        "milliseconds": round(milliseconds, 3),
        "saved_bytes": sum(saved),
    }
    print(json.dumps(answer, ensure_ascii=False))


def read_frames(settings: "InferSettings", policy: Any) -> list[dict[str, Any]]:
    """The observation as an environment gives it, and those before it as far as they are given: the newest first."""
    cameras, state_names = policy.features.cameras, policy.features.state
    images = [read_image(path) for path in settings.image]
    frames, rest = divmod(len(images), len(cameras))
    if rest or not 1 <= frames <= policy.history:
        each = f" in each of 1 to {policy.history} frames, the newest first" if policy.history > 1 else ""
        raise ValueError(
            f"image={','.join(settings.image)}: the policy has {len(cameras)} camera(s){each}: {', '.join(cameras)}"
        )
    if len(settings.state) != frames * len(state_names):
        each = f" for each of {frames} frames, as many as there are images of" if policy.history > 1 else ""
        raise ValueError(f"state={list(settings.state)}: the policy takes {', '.join(state_names)}{each}")
    return [
        {
            "images": dict(zip(cameras, images[age * len(cameras) :], strict=False)),
            "state": list(settings.state[age * len(state_names) : (age + 1) * len(state_names)]),
            "instruction": settings.instruction,
        }
        for age in range(frames)
    ]


def read_image(path: str) -> Any:
    """An RGB image, uint8 (h, w, 3)."""
    from pathlib import Path

    from vla_mini.data.images import decode
    from vla_mini.utils.errors import as_value_error

    encoded = Path(path).read_bytes()
    with as_value_error(f"image={path}", ValueError):
        return decode(encoded)


if __name__ == "__main__":
    main()
