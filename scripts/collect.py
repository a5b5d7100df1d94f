"""Collect demonstrations of an environment's scripted expert as a LeRobotDataset.

python scripts/collect.py env=toy_pick episodes=2000 output=data/toy_pick
python scripts/collect.py env=toy_pick episodes=64 output=data/small seed=1
python scripts/collect.py env=metaworld_mt50 episodes=50 output=data/metaworld_mt50
"""

from pathlib import Path
from typing import TYPE_CHECKING

from vla_mini import config

if TYPE_CHECKING:
    from vla_mini.config.command_settings import CollectSettings


@config.main("collect")
def main(settings: "CollectSettings") -> None:
    from tqdm import tqdm

    from vla_mini.collection import collect
    from vla_mini.envs import get_spec
    from vla_mini.utils.files import read_json

    if settings.env.address is None:
        raise ValueError("env=none: there is no environment to collect in; choose one, such as env=toy_pick")
    total = get_spec(settings.env.address).num_tasks * (settings.episodes + settings.validation_episodes)
    with tqdm(desc="collecting", unit=" episodes", total=total, delay=0.1) as bar:  # a refused command shows no bar
        collect(
            settings.env.address,
            settings.output,
            episodes=settings.episodes,
            validation_episodes=settings.validation_episodes,
            seed=settings.seed,
            action_noise=settings.action_noise,
            num_workers=settings.num_workers,
            progress=bar.update,
        )
    info = read_json(Path(settings.output) / "meta" / "info.json")  # a task that the expert hardly ever does was left out
    first, last = info["splits"]["train"].split(":")
    train, episodes = int(last) - int(first), info["total_episodes"]
    split = f"{train} to train on and {episodes - train} to validate on"
    print(f"{settings.output}: {episodes} episodes ({split}), {info['total_frames']} frames")


if __name__ == "__main__":
    main()
