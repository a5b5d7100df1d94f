"""A policy that answers late: success, and how smoothly one chunk follows another, for each way of joining chunks.

python benchmarks/latency.py policy=DIR [delays=[0,1,2,4,6]] [execute=8] [episodes=100] [seed=1] [output=...] [pictures=DIR]

A chunk can be used `delay` steps after its observation; until then the previous chunk is executed.

- plain: the newest chunk that is there
- ensemble: the mean of all chunks that reach a step (ACT, with 0.1)
- rtc: real-time chunking, for heads that denoise

`border_jump` is the mean absolute second difference of the actions at the steps where a new chunk begins to be executed, in
units of half the action space's range; `other_jump` that of all other steps. The rate of success has Wilson's interval.
With `pictures` there are two SVGs, too: these figures by delay, and what RTC does to one chunk of a flow head.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._machine import print_table, read_arguments, save
from vla_mini import Controller, Observation, Policy
from vla_mini.acting import joined_prefix
from vla_mini.action._denoiser import guided
from vla_mini.envs import make
from vla_mini.evaluation.curves import Curve
from vla_mini.evaluation.metrics import wilson
from vla_mini.reports.drawing.charts import Panel, line_plot
from vla_mini.reports.page import standalone
from vla_mini.types import Prefix

WAYS: dict[str, dict[str, Any]] = {
    "plain": {"ensemble": "none"},
    "ensemble": {"ensemble": 0.1},
    "rtc": {"ensemble": "none", "rtc": True},
}
COLUMNS = ("delay", "success", "border_jump", "other_jump", "steps")


def main() -> None:
    defaults = {
        "policy": "runs/toy_pick_flow/latest/policy",
        "delays": [0, 1, 2, 4, 6],
        "execute": 8,
        "episodes": 100,
        "seed": 1,
    }
    arguments = read_arguments(**defaults, output="benchmarks/results/latency.json", pictures="")
    policy, found = Policy.from_pretrained(arguments["policy"]), []
    for delay in arguments["delays"]:
        for name, settings in WAYS.items():
            if name != "rtc" or policy.takes_prefix:
                controller = Controller(policy, execute=arguments["execute"], delay=delay, **settings)
                found.append({"way": name, "delay": delay} | play(controller, arguments["episodes"], arguments["seed"]))
                print(found[-1], flush=True)
    print_table([(each["way"], *(each[name] for name in COLUMNS)) for each in found], header=("", *COLUMNS))
    save({name: arguments[name] for name in defaults} | {"results": found}, arguments["output"])
    if arguments["pictures"]:
        Path(arguments["pictures"]).mkdir(parents=True, exist_ok=True)
        for name, svg in (("delays", by_delay(found)), ("rtc", one_chunk(policy, arguments["execute"]))):
            (Path(arguments["pictures"]) / f"{name}.svg").write_text(standalone(svg))


def play(controller: Controller, episodes: int, seed: int) -> dict[str, Any]:
    """The figures of so many episodes, one after the other."""
    successes, steps, jumps = 0, 0, {True: [], False: []}
    with closing(make(controller.policy.source["env"])) as env:
        space = env.action_space
        half = (space.high - space.low) / 2
        for episode in range(episodes):
            observation, _ = env.reset(seed=episode, options={"purpose": "evaluation", "seed": seed})
            controller.reset(seed=[seed, episode])
            actions, over = [], False
            while not over:
                actions.append(np.clip(controller.step(observation), space.low, space.high))
                observation, _, terminated, truncated, info = env.step(actions[-1])
                over = terminated or truncated
            successes += bool(info["success"])
            steps += len(actions)
            for step, jump in enumerate(second_differences(np.array(actions) / half), start=2):
                since = step - controller.execute - controller.delay  # the step that the second chunk is executed from
                jumps[since >= 0 and since % controller.execute == 0].append(jump)
    low, high = wilson(successes, episodes)
    figures = {"success": successes / episodes, "success_interval": [low, high], "steps": steps / episodes}
    return figures | {
        name: float(np.mean(jumps[at])) if jumps[at] else None for name, at in (("border_jump", True), ("other_jump", False))
    }


def second_differences(actions: np.ndarray) -> np.ndarray:
    """(t, a) -> how far each action but the first two is from continuing the line of the two before it, (t - 2,)."""
    return np.abs(np.diff(actions, n=2, axis=0)).mean(axis=1)


def by_delay(found: Sequence[Mapping[str, Any]]) -> str:
    """Success and border_jump of each way over the delay."""

    def curves(figure: str) -> dict[str, list[Curve]]:
        rows = {name: [each for each in found if each["way"] == name] for name in WAYS}
        return {
            name: [Curve([each["delay"] for each in own], [each[figure] for each in own])] for name, own in rows.items() if own
        }

    panels = [
        Panel("Success", "delay in steps", curves("success"), "percent"),
        Panel("Jump where a new chunk begins", "delay in steps", curves("border_jump"), "zero"),
    ]
    return line_plot("delays", panels, columns=2)


def one_chunk(policy: Policy, execute: int, *, delay: int = 4, seed: int = 3) -> str:
    """The first action of a chunk and of the next one, drawn with and without RTC, and the gradient that RTC follows."""
    with closing(make(policy.source["env"])) as env:
        observation, _ = env.reset(seed=seed)
    chunks = {}
    for name, rtc in (("new", False), ("new, RTC", True)):
        controller = Controller(policy, execute=execute, delay=delay, ensemble="none", rtc=rtc, seed=seed)
        for _ in range(execute):
            controller.step(observation)
        seen = controller.observe(observation)
        prefix = joined_prefix([controller], like=seen.state)
        chunks[name] = policy.act(seen, [controller._generator], prefix if rtc else None)[0, :, 0]
    start = np.arange(execute, execute + policy.horizon)
    before = controller._chunks[-1].actions[:, 0]
    drawn = {"old": [Curve(list(range(policy.horizon)), before.tolist())]}
    drawn |= {name: [Curve(start.tolist(), chunk.tolist())] for name, chunk in chunks.items()}
    gradients = {f"t = {time}": [Curve(start.tolist(), norms)] for time, norms in gradient_norms(policy, seen, prefix).items()}
    name, label = policy.features.action[0], "step"
    panels = [Panel(f"Action {name}", label, drawn), Panel("Gradient toward the old chunk", label, gradients, "zero")]
    return line_plot("rtc", panels, columns=2)


def gradient_norms(policy: Policy, observation: Observation, prefix: Prefix) -> dict[float, list[float]]:
    """The norm, by action of the chunk, of the vector-Jacobian product that RTC follows, at some times of a flow head."""
    head, found = policy.action, {}
    with torch.no_grad():
        images, words, mask, state = policy.prepare(observation)
        condition = head.field.condition(policy.context(images, words, state, mask))
        goal = prefix._replace(actions=policy.normalization.action(prefix.actions, state))
        x = policy.draw_noise(1, torch.Generator().manual_seed(0))
        for step in range(head.num_steps):
            time = step / head.num_steps

            def estimate(x: torch.Tensor, time: float = time) -> torch.Tensor:
                return x + (1 - time) * head.velocity(x, time, condition)

            denoised = estimate(x)
            if step % 3 == 0:
                found[time] = (guided(estimate, x, goal, weight=1) - denoised)[0].norm(dim=-1).tolist()
            x = x + (denoised - x) / (1 - time) / head.num_steps
    return found


if __name__ == "__main__":
    main()
