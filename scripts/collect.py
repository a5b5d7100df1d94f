"""Collect demonstrations of an environment's scripted expert as a LeRobotDataset."""

from vla_mini import config


@config.main("collect")
def main(cfg) -> None:
    from tqdm import tqdm

    from vla_mini.collection import collect

    total = cfg.episodes + cfg.validation_episodes
    with tqdm(desc="collecting", unit=" episodes", total=total, delay=0.1) as bar:  # nothing shows of a refused command
        collected = collect(
            cfg.env.id,
            cfg.output,
            episodes=cfg.episodes,
            validation_episodes=cfg.validation_episodes,
            seed=cfg.seed,
            disturbance=cfg.disturbance,
            num_workers=cfg.num_workers,
            progress=lambda done, total: bar.update(done - bar.n),
        )
    split = f"{cfg.episodes} to train on and {cfg.validation_episodes} to validate on"
    print(f"{cfg.output}: {collected.episodes} episodes ({split}), {collected.frames} frames")


if __name__ == "__main__":
    main()
