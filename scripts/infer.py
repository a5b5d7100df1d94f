"""Ask a saved policy for one chunk of actions: an image, an instruction and a state in, one JSON object out.

`mode` is what autograd does meanwhile: `no_grad` (as in acting), `inference_mode`, or `grad`, which keeps the graph. The
actions are the same; the time, and the bytes kept for a backward pass, are not.
"""

import json
import sys
import time
from typing import Any

from vla_mini import config


@config.main("infer")
def main(cfg: Any) -> None:
    import torch

    from vla_mini import Policy
    from vla_mini.autograd.saved import count_saved_bytes
    from vla_mini.evaluation.rollout import observe

    if not cfg.instruction.strip():
        raise ValueError("instruction='' is empty: say what to do, such as 'pick up the red cube'")
    policy = Policy.from_pretrained(cfg.policy, trust_remote_code=cfg.trust_remote_code)
    now, *past = read_frames(cfg, policy)
    observation = observe(policy, [now], past=[past])
    if unknown := policy.language.unknown_words(cfg.instruction):
        words = ", ".join(map(repr, unknown))
        print(f"infer: warning: the policy does not know the words {words}: to it they are all the same", file=sys.stderr)
    generator = torch.Generator().manual_seed(cfg.seed)
    mode = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference_mode": torch.inference_mode}[cfg.mode]

    def predict() -> torch.Tensor:
        pixels, words, mask, state = policy.prepare(observation)
        return policy.predict(pixels, words, state, generator.manual_seed(cfg.seed), word_mask=mask)

    with mode():
        predict()  # the first pass also pays for setting up
        start = time.perf_counter()
        actions = predict()
        milliseconds = 1000 * (time.perf_counter() - start)
        with count_saved_bytes(policy) as saved:  # a pass of its own: counting takes time
            predict()
    answer = {
        "actions": actions[0].tolist(),
        "action_names": policy.features.action,
        "instruction": cfg.instruction,
        "mode": cfg.mode,
        "requires_grad": actions.requires_grad,
        "milliseconds": round(milliseconds, 3),
        "saved_bytes": saved.bytes,
    }
    print(json.dumps(answer, ensure_ascii=False))


def read_frames(cfg: Any, policy: Any) -> list[dict[str, Any]]:
    """What the robot sees and feels, and what it saw and felt before as far as that is given, as an environment says it."""
    cameras, state_names = policy.features.cameras, policy.features.state
    images = [read_image(path) for path in ([cfg.image] if isinstance(cfg.image, str) else cfg.image)]
    frames, rest = divmod(len(images), len(cameras))
    if rest or not 1 <= frames <= policy.history:
        seen = f" in each of 1 to {policy.history} frames, the newest first" if policy.history > 1 else ""
        raise ValueError(f"image={cfg.image}: the policy has {len(cameras)} camera(s){seen}: {', '.join(cameras)}")
    if len(cfg.state) != frames * len(state_names):
        of = f" of {frames} frames, as many as there are images of" if policy.history > 1 else ""
        raise ValueError(f"state={cfg.state}: the policy feels {', '.join(state_names)}{of}")
    return [
        {
            "images": dict(zip(cameras, images[age * len(cameras) :], strict=False)),
            "state": list(cfg.state[age * len(state_names) : (age + 1) * len(state_names)]),
            "instruction": cfg.instruction,
        }
        for age in range(frames)
    ]


def read_image(path: str) -> Any:
    """An RGB image, uint8 (h, w, 3)."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        return np.asarray(Image.open(path).convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError(f"image={path} is not an image that Pillow can read") from None


if __name__ == "__main__":
    main()
