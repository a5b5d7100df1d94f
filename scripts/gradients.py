"""See how gradients flow through a policy: what its actions hang on, what learns, what it costs; with pictures.

Writes gradients.html and gradients.json into a new folder: `output`, or gradients/<date_time>/ beside the policy.
"""

import json
import math
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vla_mini import config

EPISODES = 64  # collected where no data is given
SCENES_SHOWN, SAMPLES_SHOWN = 3, 6


@config.main("gradients")
def main(cfg: Any) -> None:
    from vla_mini.autograd.flow import gradient_flow
    from vla_mini.autograd.graph import trace_graph
    from vla_mini.autograd.inference import compare_modes
    from vla_mini.autograd.jacobian import jacobian
    from vla_mini.autograd.per_sample import per_sample
    from vla_mini.pages.gradients import gradients_page
    from vla_mini.types import Observation

    start = time.perf_counter()
    policy, batch, instructions = policy_and_batch(cfg)
    scenes = begin_scenes(policy, batch, instructions, cfg)
    beside = config.default_output(cfg.policy, "gradients", f"runs/{cfg.experiment}")
    output = config.new_folder(cfg.output or beside)  # all is checked: the work begins

    print("sensitivity ...", flush=True)
    sensitivity, looks = look(policy, scenes)
    print("gradient flow, sample by sample ...", flush=True)
    components, layers = gradient_flow(policy, batch)
    samples = per_sample(policy, batch, seed=cfg.seed)
    graph = trace_graph(policy, batch)
    print("Jacobian, inference ...", flush=True)
    one = Observation(*(tensor[:1] for tensor in batch.observation))
    whole = jacobian(policy, one, grid=cfg.grid, seed=cfg.seed)
    modes, equal = compare_modes(policy, one, seed=cfg.seed)

    results = {
        "policy": cfg.policy or f"untrained {cfg.experiment}",
        "env": policy.source.get("env"),
        "seed": cfg.seed,
        "num_parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "samples": len(instructions),
        **thresholds(),
        "components": {name: flow._asdict() for name, flow in components.items()},
        "depth": [{"name": layer.name, **layer.flow._asdict(), "arriving": layer.arriving} for layer in layers],
        **on_target_share(sensitivity),
        "sensitivity": sensitivity,
        "jacobian": describe_jacobian(whole, policy, grid=cfg.grid),
        "per_sample": samples._asdict(),
        "inference": {name: cost._asdict() for name, cost in modes.items()} | {"equal_outputs": equal},
        "graph": graph._asdict(),
    }
    results["seconds"] = round(time.perf_counter() - start, 3)
    page = gradients_page(
        finite(results),
        looks=looks,
        samples=largest(samples.norms, batch, instructions),
        jacobian=whole.matrix.detach().numpy(),
    )
    write(output / "gradients.html", page)
    write(output / "gradients.json", json.dumps(finite(results), indent=2, allow_nan=False) + "\n")
    print(f"{summary(results)}; {output / 'gradients.html'}")


# ---- what is looked at


def policy_and_batch(cfg: Any) -> tuple[Any, Any, list[str]]:
    """The policy, saved or untrained, a batch of random samples of its data, and what was said in each."""
    import numpy as np
    from omegaconf import OmegaConf

    from vla_mini import Policy
    from vla_mini.data.reader import read_dataset
    from vla_mini.data.windows import ActionWindows, Keyframe
    from vla_mini.training.setup import untrained_policy

    policy = Policy.from_pretrained(cfg.policy) if cfg.policy else None
    env_id = policy.source.get("env") if policy else cfg.training.env.id
    with TemporaryDirectory() as temporary:
        data = read_dataset(cfg.data or collect_some(env_id, Path(temporary) / "data", seed=cfg.seed))
        policy = policy or untrained_policy(OmegaConf.to_container(cfg.training, resolve=True), data).eval()
        check_sizes(policy, data, cfg)
        closing = cfg.keyframe if cfg.policy else cfg.training.data.keyframe
        windows = ActionWindows(
            data,
            split="train",
            horizon=policy.action.horizon,
            tokenize=policy.tokenize,
            keyframe=Keyframe(policy.keyframe, closing.closes, closing.threshold) if policy.keyframe else None,
        )
        chosen = np.random.default_rng(cfg.seed).permutation(len(windows))[: cfg.samples]
        first = data.episode_starts[data.splits["train"][0]]
        return policy, windows.__getitems__(chosen), [data.tasks[task] for task in data.task_index[first + chosen]]


def collect_some(env_id: str | None, folder: Path, *, seed: int) -> Path:
    from vla_mini.collection import collect

    if env_id is None:
        raise ValueError("the policy does not say which environment it was made for: give data=DIR")
    collect(env_id, folder, episodes=EPISODES, seed=seed, num_workers=1)
    return folder


def check_sizes(policy: Any, data: Any, cfg: Any) -> None:
    """Refuse data of other sizes than the policy's, and a reduced image that is none."""
    if cfg.grid > min(policy.features.image_size):
        raise ValueError(f"grid={cfg.grid} is finer than the image of {policy.features.image_size}")
    for name in ("cameras", "image_size", "state", "action"):
        wanted, found = getattr(policy.features, name), getattr(data.features, name)
        if wanted != found:
            raise ValueError(f"data={cfg.data}: its {name} is {found}, but the policy was made for {wanted}")


def begin_scenes(policy: Any, batch: Any, instructions: list[str], cfg: Any) -> list[Any]:
    """How episodes of the policy's environment begin; without one, frames of the data, each also told what another is."""
    from vla_mini.autograd.sensitivity import Scene, start_scenes

    if "env" in policy.source:
        return start_scenes(policy.source["env"], scenes=cfg.scenes, seed=cfg.seed)
    others = {one: next((other for other in instructions if other != one), one) for one in set(instructions)}
    scenes = []
    for index, own in enumerate(instructions[: cfg.scenes]):
        images = dict(zip(policy.features.cameras, batch.observation.images[index].permute(0, 2, 3, 1).numpy(), strict=True))
        for instruction in dict.fromkeys((own, others[own])):
            observation = {"images": images, "state": batch.observation.state[index].numpy(), "instruction": instruction}
            scenes.append(Scene(index, observation, masks=None, target=0))
    return scenes


# ---- what is seen


def look(policy: Any, scenes: list[Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """gradients.json's `sensitivity`, and the pictures of the first scenes."""
    import torch

    from vla_mini.autograd.sensitivity import on_objects, sensitivity
    from vla_mini.evaluation.rollout import observe
    from vla_mini.pages.gradients import Look

    entries, looks = [], []
    for first in range(0, len(scenes), 20):  # a few at a time, so that memory stays bounded
        part = scenes[first : first + 20]
        found = sensitivity(policy, observe(policy, [scene.observation for scene in part]))
        for scene, pixels, words, state in zip(part, found.pixels[:, 0], found.words, found.state, strict=True):
            known = scene.masks is not None and len(scene.masks) > 1
            sizes = on_objects(pixels, torch.from_numpy(scene.masks), scene.target) if known else (None, None)
            instruction = scene.observation["instruction"]
            by_word = list(zip(policy.language.words(instruction), words.tolist(), strict=False))
            by_state = list(zip(policy.features.state, state.tolist(), strict=True))
            entry = {"scene": scene.episode, "instruction": instruction, "on_target": sizes[0], "on_others": sizes[1]}
            entries.append(entry | {"words": by_word, "state": dict(by_state)})
            if scene.episode < SCENES_SHOWN:
                image = scene.observation["images"][policy.features.cameras[0]]
                target = scene.masks[scene.target] if known else None
                looks.append(Look(scene.episode, instruction, image, pixels.numpy(), target, by_word, by_state, *sizes))
    return entries, looks


def on_target_share(sensitivity: list[dict[str, Any]]) -> dict[str, Any]:
    """In how many of the pairs of a scene and an instruction the named object weighs more than the others."""
    pairs = [entry for entry in sensitivity if entry["on_target"] is not None]
    above = sum(entry["on_target"] > entry["on_others"] for entry in pairs)
    return {"num_pairs": len(pairs), "on_target_share": above / len(pairs) if pairs else None}


def thresholds() -> dict[str, Any]:
    from vla_mini.autograd.flow import EXPLODING, LEARNING_RATE, VANISHING

    why = (
        f"Flagged as vanishing where a plain step at learning rate {LEARNING_RATE:g} would change the weights by less than "
        "float32 can hold, 2⁻²⁴ of them; as exploding where it would change them by as much as they are."
    )
    return {"thresholds": {"vanishing": VANISHING, "exploding": EXPLODING, "learning_rate": LEARNING_RATE, "why": why}}


def describe_jacobian(result: Any, policy: Any, *, grid: int) -> dict[str, Any]:
    features = policy.features
    rows, columns = result.matrix.shape
    pixels = len(features.cameras) * 3 * features.image_size[0] * features.image_size[1]
    colours = {
        f"{camera}, {colour}" if len(features.cameras) > 1 else colour: grid * grid
        for camera in features.cameras
        for colour in ("red", "green", "blue")
    }
    return {
        "rows": rows,
        "columns": columns,
        **{name: value for name, value in result._asdict().items() if name != "matrix"},
        "full_columns": features.state_size + pixels,
        "row_blocks": {f"action {step}": features.action_size for step in range(rows // features.action_size)},
        "column_blocks": {"state": features.state_size} | colours,
    }


def largest(norms: list[float], batch: Any, instructions: list[str]) -> list[Any]:
    """The samples with the largest gradients, as pictures."""
    from vla_mini.pages.gradients import Sample

    order = sorted(range(len(norms)), key=lambda index: -norms[index])[:SAMPLES_SHOWN]
    images = batch.observation.images[:, 0].permute(0, 2, 3, 1).numpy()
    return [Sample(images[index], instructions[index], norms[index]) for index in order]


# ---- what is written


def finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(path: Path, text: str) -> None:
    """Under its name only once it is whole."""
    unfinished = path.with_name(f"{path.name}.partial")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def summary(results: dict[str, Any]) -> str:
    share, flagged = results["on_target_share"], [one for one in results["depth"] if one["vanishing"] or one["exploding"]]
    looks = "" if share is None else f"the named object weighs most in {share:.1%} of {results['num_pairs']} pairs, "
    return f"{looks}{len(flagged)} of {len(results['depth'])} layers flagged, {results['seconds']:.1f} s"


if __name__ == "__main__":
    main()
