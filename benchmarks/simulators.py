"""How fast the simulators are: a step, an image, demonstrations of the expert on all cores, a policy in closed loop.

python benchmarks/simulators.py [steps=200] [episodes=4] [output=benchmarks/results/simulators.json]

The environments whose packages are installed take part. The policy is untrained: it fails, so all its episodes last as long
as they may.
"""

import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks._machine import print_table, read_arguments, save, timed

KETCHUP = "task=LIVING_ROOM_SCENE1_pick_up_the_ketchup_and_put_it_in_the_basket&image_size=128"
ENVIRONMENTS = {
    "Meta-World reach": "vla_mini/MetaWorld-v0?task=reach&image_size=96&render=fast",
    "Meta-World coffee-push": "vla_mini/MetaWorld-v0?task=coffee-push&image_size=96&render=fast",
    "the same, 128 px": "vla_mini/MetaWorld-v0?task=coffee-push&image_size=128&render=fast",
    "the same, faithful": "vla_mini/MetaWorld-v0?task=coffee-push&image_size=96&render=faithful",
    "LIBERO, 128 px": f"vla_mini/LiberoLivingRoom-v0?{KETCHUP}&render=fast",
    "the same, two cameras": f"vla_mini/LiberoLivingRoom-v0?{KETCHUP}&wrist=true&render=fast",
    "the same, one, faithful": f"vla_mini/LiberoLivingRoom-v0?{KETCHUP}&render=faithful",
    "PushT": "vla_mini/PushT-v0",
}
COLUMNS = {
    "step_milliseconds": "step, ms",
    "image_milliseconds": "image, ms",
    "demonstration_frames_per_second": "expert, frames/s",
    "closed_loop_steps_per_second": "closed loop, steps/s",
}


def main() -> None:
    arguments = read_arguments(steps=200, episodes=4, output="benchmarks/results/simulators.json")
    from vla_mini.envs import get_spec

    figures: dict[str, dict[str, Any]] = {}
    for name, env_id in ENVIRONMENTS.items():
        try:
            spec = get_spec(env_id)
        except ValueError as error:
            print(f"{name}: left out ({error})")
            continue
        figures[name] = {"env": env_id} | step_and_image(env_id, arguments["steps"])
        figures[name] |= demonstrations(env_id, arguments["episodes"]) if spec.has_expert else {}
        figures[name] |= closed_loop(env_id, arguments["episodes"])
    print_table(
        [(name, *(found.get(key) for key in COLUMNS)) for name, found in figures.items()], header=("", *COLUMNS.values())
    )
    save({name: arguments[name] for name in ("steps", "episodes")} | {"environments": figures}, arguments["output"])


def step_and_image(env_id: str, steps: int) -> dict[str, float]:
    """Milliseconds of a step without an image, and of an image."""
    from vla_mini.envs import make

    with closing(make(env_id)) as env:
        env.reset(seed=0, options={"render_every": 10**6})
        env.action_space.seed(0)
        stepping, _ = timed(lambda: [env.step(env.action_space.sample()) for _ in range(steps)])
        drawing, _ = timed(lambda: [env.unwrapped.render() for _ in range(steps)])
    return {"step_milliseconds": 1000 * stepping / steps, "image_milliseconds": 1000 * drawing / steps}


def demonstrations(env_id: str, episodes: int) -> dict[str, float]:
    """Frames a second that are collected on all cores, the start of processes among them."""
    from vla_mini.collection import collect

    with tempfile.TemporaryDirectory() as folder:
        seconds, frames = timed(lambda: collect(env_id, Path(folder) / "data", episodes=episodes))
    return {"demonstration_frames_per_second": frames / seconds}


def closed_loop(env_id: str, episodes: int) -> dict[str, float]:
    """Steps a second of an untrained policy of the default parts that executes eight actions of a chunk."""
    from vla_mini import config
    from vla_mini.envs import get_spec
    from vla_mini.evaluation.rollout import rollout
    from vla_mini.setup.demonstrations import blank_demonstrations
    from vla_mini.setup.policy import untrained_policy

    settings = config.load("train", ["env=none", "data.root=none", "auxiliary=none", "vision.input_size=null"])
    policy = untrained_policy(settings, blank_demonstrations(get_spec(env_id))).eval()
    seconds, results = timed(lambda: rollout(policy, env_id, episodes=range(episodes), execute=8))
    return {"closed_loop_steps_per_second": sum(result.steps for result in results) / seconds}


if __name__ == "__main__":
    main()
