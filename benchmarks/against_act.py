"""Training on a recording beside LeRobot's ACT: samples a second, and the error of the action chunk after the same time.

LeRobot needs other versions of the libraries that vla-mini uses, so it is installed in a virtual environment of its own:

    python3 -m venv .lerobot && .lerobot/bin/pip install lerobot==0.4.4     (its decoder needs FFmpeg's libraries)
    python benchmarks/against_act.py lerobot=.lerobot/bin/python source=DIR [seconds=600] [settings=[{},{"chunk_size":16}]]

`source` is a dataset of format v3.0. Both train for `seconds` on the same episodes, one after the other: vla-mini as
experiment=real does it, decoding included; LeRobot by its own dataset, loader, processors and optimizer, once for each of
`settings`, which are changes to its defaults. Then both predict the chunks of the same frames of the held-out episodes.
The error is the mean absolute difference to what was recorded, in standard deviations, over the actions of vla-mini's horizon.
ACT's ResNet starts from random weights (`pretrained_backbone_weights=None`), since its pretrained ones need a download.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

FRAMES = 500


def main() -> None:
    if "inside" in sys.argv[1:2]:
        return inside_lerobot(Path(sys.argv[2]))
    from benchmarks._machine import print_table, read_arguments, save

    defaults = {"lerobot": "", "source": "", "seconds": 600, "settings": [{}, {"chunk_size": 16, "optimizer_lr": 1e-4}]}
    arguments = read_arguments(**defaults, output="benchmarks/results/against_act.json", others=[])
    if not arguments["lerobot"] or not arguments["source"]:
        raise SystemExit("lerobot=PYTHON (of a virtual environment with lerobot 0.4.4) and source=DIR (a dataset) are required")
    with tempfile.TemporaryDirectory() as temporary:
        figures = {"vla-mini": ours(Path(temporary), arguments)}
        for settings in arguments["settings"]:
            name = ", ".join(["ACT", *(f"{key}={value}" for key, value in settings.items())])
            figures[name] = act(Path(temporary), arguments, settings)
    names = [*figures["vla-mini"]]
    rows = [(run, *(found.get(name) for name in names)) for run, found in figures.items()]
    print_table(rows, header=("", *(name.replace("_", " ") for name in names)))
    save({name: arguments[name] for name in ("seconds",)} | {"frames": FRAMES, "runs": figures}, arguments["output"])


def ours(folder: Path, arguments: dict[str, Any]) -> dict[str, float]:
    """Train for the given time, and write what LeRobot needs to do the same: episodes, frames and actions."""
    from benchmarks._training import build
    from vla_mini import config
    from vla_mini.evaluation.open_loop import batches_of, chunks_of, evenly_spaced
    from vla_mini.setup.demonstrations import training_demonstrations

    base = ["experiment=real", f"data.root={arguments['source']}", f"data.cache={folder}/cache", f"hydra.run.dir={folder}/run"]
    base += ["trainer.accelerator=cpu", *arguments["others"]]
    start = time.perf_counter()
    rate = steps_a_second([*base, "trainer.max_steps=60"])
    left = arguments["seconds"] - (time.perf_counter() - start)  # what finding out costs is part of the time
    steps = int(left * rate)
    settings = config.load("train", [*base, f"trainer.max_steps={steps}", f"trainer.val_check_interval={max(1, steps // 8)}"])
    trainer, module, datamodule = build(settings)
    trainer.fit(module, datamodule=datamodule)
    spent = time.perf_counter() - start
    policy, data = module.policy_for_evaluation.eval(), training_demonstrations(settings)
    validation = chunks_of(policy, data, "validation")
    samples = evenly_spaced(len(validation), FRAMES)
    parts = [(policy.act(batch.observation), batch) for _, batch in batches_of(policy, validation, samples, 32)]
    found = np.concatenate([chunk.numpy() for chunk, _ in parts])
    recorded = np.concatenate([batch.actions.numpy() for _, batch in parts])
    is_pad = np.concatenate([batch.is_pad.numpy() for _, batch in parts])
    # The frames by the dataset's numbers of their episodes and within these.
    first = data.episode_starts[data.splits["validation"][0]]
    episodes = np.searchsorted(data.episode_ends, first + samples, side="right")
    np.savez(folder / "recorded.npz", actions=recorded, is_pad=is_pad, std=data.statistics.action.std)
    shared = {
        "root": str(Path(arguments["source"]).absolute()),
        "training": data.episode_index[slice(*data.splits["train"])].tolist(),
        "frames": [data.episode_index[episodes].tolist(), (first + samples - data.episode_starts[episodes]).tolist()],
        "fps": data.features.fps,
        "horizon": policy.horizon,
    }
    (folder / "task.json").write_text(json.dumps(shared))
    samples_seen = steps * settings.data.batch_size
    return {
        "steps": steps,
        "samples_per_second": samples_seen / left,
        "seconds": spent,
        "parameters": sum(weight.numel() for weight in policy.parameters()),
        "error": error(folder, found),
    }


def steps_a_second(arguments: list[str]) -> float:
    from lightning.pytorch.callbacks import LambdaCallback

    from benchmarks._training import build
    from vla_mini import config

    trainer, module, data = build(config.load("train", [*arguments, "trainer.limit_val_batches=0"]))
    ends: list[float] = []
    trainer.callbacks.append(LambdaCallback(on_train_batch_end=lambda *_: ends.append(time.perf_counter())))
    trainer.fit(module, datamodule=data)
    return 0.95 / float(np.median(np.diff(ends[10:])))  # validation takes the rest


def act(folder: Path, arguments: dict[str, Any], settings: dict[str, Any]) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    (folder / "settings.json").write_text(json.dumps({"seconds": arguments["seconds"], "policy": settings}))
    command = [arguments["lerobot"], str(Path(__file__).absolute()), "inside", str(folder)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1]) | {"error": error(folder, np.load(folder / "predicted.npy"))}


def error(folder: Path, predicted: np.ndarray) -> float:
    """The mean absolute difference in standard deviations of each action, over valid actions of the chunks."""
    recorded = np.load(folder / "recorded.npz")
    difference = np.abs(predicted - recorded["actions"]) / recorded["std"]
    return float(difference[~recorded["is_pad"]].mean())


def inside_lerobot(folder: Path) -> None:
    """Runs under LeRobot's interpreter, without vla-mini. The last line that it prints is a JSON object."""
    import torch
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    task, settings = (json.loads((folder / name).read_text()) for name in ("task.json", "settings.json"))
    torch.manual_seed(1000)
    config = ACTConfig(pretrained_backbone_weights=None, device="cpu", push_to_hub=False)
    for name, value in settings["policy"].items():
        setattr(config, name, value)
    config.n_action_steps = config.chunk_size
    times = {"action": [step / task["fps"] for step in range(config.chunk_size)]}
    dataset = LeRobotDataset("local/data", root=task["root"], episodes=task["training"], delta_timestamps=times)
    policy = make_policy(config, ds_meta=dataset.meta)
    prepare, finish = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    preset = config.get_optimizer_preset()
    optimizer, clip = preset.build(policy.get_optim_params()), preset.grad_clip_norm
    loader = torch.utils.data.DataLoader(dataset, num_workers=4, batch_size=8, shuffle=True, prefetch_factor=2)  # its defaults
    policy.train()
    start, steps, samples = time.perf_counter(), 0, 0
    while time.perf_counter() - start < settings["seconds"]:
        for batch in loader:
            loss, _ = policy.forward(prepare(batch))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            steps, samples = steps + 1, samples + len(batch["action"])
            if time.perf_counter() - start >= settings["seconds"]:
                break
    spent = time.perf_counter() - start
    policy.eval()
    everything, found = LeRobotDataset("local/data", root=task["root"]), []
    starts = dict(zip(everything.meta.episodes["episode_index"], everything.meta.episodes["dataset_from_index"], strict=True))
    for episode, frame in zip(*task["frames"], strict=True):
        item = everything[starts[episode] + frame]
        observation = {name: value for name, value in item.items() if name.startswith("observation") or name == "task"}
        with torch.no_grad():
            found.append(finish(policy.predict_action_chunk(prepare(observation)))[0, : task["horizon"]].numpy())
    np.save(folder / "predicted.npy", np.stack(found))
    figures = {"steps": steps, "samples_per_second": samples / spent, "seconds": spent}
    print(json.dumps(figures | {"parameters": sum(weight.numel() for weight in policy.parameters())}))


if __name__ == "__main__":
    main()
