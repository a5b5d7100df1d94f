"""Evaluation without an environment: a policy and demonstrations in, how far its action chunks are from the recorded ones out.

Frames of the validation episodes, evenly spaced, are given to the policy. Each chunk (t, a) that it predicts is compared with
the actions that were recorded from there on; steps past an episode's end are left out. Errors are mean absolute differences, in
raw units and in standard deviations of each joint (a dimension of the action) in the training split. Nothing is executed: a
small error does not show that the policy succeeds.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from tqdm import tqdm

from vla_mini.autograd.batches import seeded
from vla_mini.data.chunks import ActionChunkDataset
from vla_mini.data.frames import is_decoded
from vla_mini.data.reader import Demonstrations
from vla_mini.normalization import relative_sources
from vla_mini.policy import Policy
from vla_mini.types import Batch, Observation

GRID = 8  # pixels a side of the images that are compared to find the nearest training frame
STREAMED_TRAINING_FRAMES = 200  # single frames of a video that is not in the cache take long to decode
MOST_TRACED = 1000  # frames of an episode whose actions are kept to be drawn


def evaluate_open_loop(
    policy: Policy,
    data: Demonstrations,
    *,
    num_frames: int = 1000,
    num_training_frames: int = 2000,
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """What open_loop.json holds. Nothing is written.

    - num_frames: of the validation episodes, evenly spaced, at most
    - num_training_frames: among which the nearest is looked for, evenly spaced, at most; fewer where frames are decoded when
      they are needed
    - seed: of the noise that sampling heads and losses draw, which is the same whatever the words are
    - progress: whether to show a bar on stderr
    """
    start = time.perf_counter()
    validation, training = (chunks_of(policy, data, split) for split in ("validation", "train"))
    if not is_decoded(data.frames):
        num_training_frames = min(num_training_frames, STREAMED_TRAINING_FRAMES)
    samples, compared = evenly_spaced(len(validation), num_frames), evenly_spaced(len(training), num_training_frames)
    with tqdm(total=len(samples), desc="open loop", unit="frame", disable=None if progress else True, leave=False) as bar:
        neighbours = find_neighbours(policy, data, training, compared, batch_size=batch_size)
        batches = batches_of(policy, validation, samples, batch_size)
        described, losses = _measure(policy, data, samples, batches, neighbours, seed=seed, bar=bar)
    first, last = data.splits["validation"]
    held, relative = _held_states(data), policy.normalization.settings.relative
    return {
        "episodes": data.episode_index[first:last].tolist(),
        "num_frames": len(samples),
        "of_frames": len(validation),
        "num_training_frames": len(compared),
        "horizon": policy.horizon,
        "fps": data.features.fps,
        "seed": seed,
        "joints": {
            name: {
                "std": round_(std),
                "hold": "state" if source >= 0 else "last action",
                "predicted": "relative" if name in relative else "absolute",
            }
            for name, std, source in zip(data.features.action, data.statistics.action.std, held, strict=True)
        },
        "errors": {"policy": described["own"]} | {name: described[name] for name in ("mean_action", "hold", "nearest_frame")},
        "words": {
            name: {"error": described[name]["std"], "loss": loss, "change": described[f"{name} changes"]["std"]}
            for name, loss in losses.items()
        },
        "traces": traces(policy, data, validation, batch_size=batch_size, seed=seed),
        "seconds": round(time.perf_counter() - start, 3),
    }


@torch.no_grad()
def _measure(
    policy: Policy,
    data: Demonstrations,
    samples: np.ndarray,
    batches: Iterable[tuple[int, Batch]],
    neighbours: "Neighbours",
    *,
    seed: int,
    bar: tqdm,
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """The errors (`_describe`) of each baseline and with each kind of words, and by how much these change what is predicted
    with the own ones; and the mean loss with each kind. Noise is the same whatever the words are."""
    words, first = sentences(policy, data.tasks), int(data.episode_starts[data.splits["validation"][0]])
    sums: dict[str, Any] = defaultdict(float)  # of absolute differences, float64 (t, a)
    losses, counts = dict.fromkeys(words, 0.0), np.zeros(policy.horizon)  # of valid actions, by step
    for number, batch in batches:
        frames = first + samples[number : number + len(batch.is_pad)]
        tasks, recorded, valid = data.task_index[frames], batch.actions.numpy(force=True), ~batch.is_pad.numpy(force=True)
        predicted = baselines(policy, data, frames, batch.observation, neighbours)
        for name, (tokens, mask) in words.items():
            observation = batch.observation._replace(tokens=tokens[tasks], token_mask=mask[tasks])
            predicted[name] = _act(policy, observation, seed=seed + number)
            with seeded(seed + number, policy.device):
                loss, _ = policy.loss(batch._replace(observation=observation))
            losses[name] += float(loss.double().sum())
        for name, chunks in predicted.items():
            sums[name] += (np.abs(chunks - recorded) * valid[..., None]).sum(axis=0)
            if name in words:
                sums[f"{name} changes"] += (np.abs(chunks - predicted["own"]) * valid[..., None]).sum(axis=0)
        counts += valid.sum(axis=0)
        bar.update(len(valid))
    described = {name: _describe(total, counts, data) for name, total in sums.items()}
    return described, {name: round_(loss / counts.sum()) for name, loss in losses.items()}


def sentences(policy: Policy, tasks: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Tokens and mask "tasks l" of each task's own sentence, of the next task's, where there are several, and of none."""
    texts = {"own": list(tasks), "swapped": [*tasks[1:], tasks[0]], "blank": [""] * len(tasks)}
    if len(tasks) < 2:
        del texts["swapped"]
    return {name: tuple(each.to(policy.device) for each in policy.tokenize(of)) for name, of in texts.items()}


# ---- baselines


class Neighbours(NamedTuple):
    """Training frames, among which the nearest one is looked for."""

    descriptors: Float[Tensor, "n d"]
    scale: Float[Tensor, " d"]  # that the descriptors were multiplied by
    states: np.ndarray  # (n, s) raw units
    chunks: np.ndarray  # (n, t, a) raw units; past an episode's end the last action repeats


def find_neighbours(
    policy: Policy, data: Demonstrations, training: ActionChunkDataset, samples: np.ndarray, *, batch_size: int = 32
) -> Neighbours:
    """The training frames `samples` with descriptors in which pixels and state have the same variance in all."""
    found = []
    for _, batch in batches_of(policy, training, samples, batch_size):
        found.append((_descriptors(data, batch.observation), batch.observation.state, batch.actions))
    descriptors, states, chunks = (torch.cat(each).cpu() for each in zip(*found, strict=True))
    variance, size = descriptors.var(dim=0, correction=0), data.features.state_size
    scale = torch.cat(
        [part.sum().rsqrt().nan_to_num(posinf=0).expand_as(part) for part in (variance[:-size], variance[-size:])]
    )
    return Neighbours(descriptors * scale, scale, states[:, :size].numpy(), chunks.numpy())


def _descriptors(data: Demonstrations, observation: Observation) -> Float[Tensor, "b d"]:
    """The newest frame's images, reduced to GRID x GRID pixels, and its state in standard deviations."""
    cameras, state = observation.images[:, : len(data.features.cameras)], data.statistics.state
    pixels = F.adaptive_avg_pool2d(rearrange(cameras, "b k c h w -> b (k c) h w").float(), GRID)
    numbers = observation.state[:, : data.features.state_size].float().cpu() - torch.from_numpy(state.mean)
    scale = torch.from_numpy(state.bounded(state.std))
    return torch.cat([pixels.flatten(1).cpu(), numbers / scale.masked_fill(scale == 0, torch.inf)], dim=1)


def baselines(
    policy: Policy, data: Demonstrations, frames: np.ndarray, observation: Observation, neighbours: Neighbours
) -> dict[str, np.ndarray]:
    """Chunks (b, t, a), raw units, that need no learning, for `frames` (b,), numbers among all frames, which were observed.

    - mean_action: the mean of the training split
    - hold: the state of the same name, where there is one, else the last action that was recorded before the frame; before an
      episode's first frame the mean action
    - nearest_frame: the chunk of the training frame with the nearest descriptor, relative to its state where the policy's is
    """
    mean, size = data.statistics.action.mean, (len(frames), policy.horizon, data.features.action_size)
    starts = data.episode_starts[np.searchsorted(data.episode_ends, frames, side="right")]
    held = np.where((frames > starts)[:, None], data.actions[np.maximum(frames - 1, 0)], mean)
    sources = _held_states(data)
    held = np.where(sources >= 0, data.states[frames][:, sources], held)
    nearest = torch.cdist(_descriptors(data, observation) * neighbours.scale, neighbours.descriptors).argmin(dim=1).numpy()
    relative = relative_sources(data.features, policy.normalization.settings.relative)
    shift = np.where(relative >= 0, (data.states[frames] - neighbours.states[nearest])[:, relative], 0)
    return {
        "mean_action": np.broadcast_to(mean, size),
        "hold": np.broadcast_to(held[:, None], size),
        "nearest_frame": neighbours.chunks[nearest] + shift[:, None],
    }


def _held_states(data: Demonstrations) -> np.ndarray:
    """For each action the index of the state of the same name, or -1, (a,)."""
    return relative_sources(data.features, [name for name in data.features.action if name in data.features.state])


# ---- what is drawn


def traces(
    policy: Policy,
    data: Demonstrations,
    validation: ActionChunkDataset,
    *,
    num_episodes: int = 2,
    num_joints: int = 8,
    batch_size: int = 32,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Recorded and predicted actions over whole episodes, the second of another task where there is one: every `horizon` frames
    the policy observes, and all actions of its chunk are kept. Of the joints that vary most, in raw units."""
    first, last = data.splits["validation"]
    tasks = data.task_index[data.episode_starts[first:last]]
    others = [*np.flatnonzero(tasks != tasks[0]), *range(1, last - first)]
    joints = np.sort(np.argsort(-data.statistics.action.std, kind="stable")[:num_joints])
    found = []
    for episode in [first, *(first + int(other) for other in others)][:num_episodes]:
        start = int(data.episode_starts[episode])
        whole = int(data.episode_ends[episode]) - start
        length = min(whole, MOST_TRACED)
        samples = start - int(data.episode_starts[first]) + np.arange(0, length, policy.horizon)
        chunks = [
            _act(policy, batch.observation, seed=seed + number)
            for number, batch in batches_of(policy, validation, samples, batch_size)
        ]
        predicted = rearrange(np.concatenate(chunks), "b t a -> (b t) a")[:length]
        recorded = data.actions[start : start + length]
        found.append(
            {
                "episode": int(data.episode_index[episode]),
                "task": data.tasks[data.task_index[start]],
                "num_frames": length,
                "of_frames": whole,
                "joints": {
                    data.features.action[joint]: {
                        "recorded": [round_(value) for value in recorded[:, joint]],
                        "predicted": [round_(value) for value in predicted[:, joint]],
                    }
                    for joint in joints
                },
            }
        )
    return found


# ---- helpers


def round_(value: float | np.floating) -> float:
    """Five significant digits."""
    return float(f"{value:.5g}")


def _act(policy: Policy, observation: Observation, *, seed: int) -> np.ndarray:
    """The policy's chunks (b, t, a), float64 in raw units."""
    return policy.act(observation, Generator(policy.device).manual_seed(seed)).to("cpu", torch.float64).numpy()


def chunks_of(policy: Policy, data: Demonstrations, split: str) -> ActionChunkDataset:
    targets = policy.auxiliary_targets(data)
    options = {"horizon": policy.horizon, "history": policy.history, "tokenize": policy.tokenize}
    return ActionChunkDataset(data, split=split, targets=targets, **options)


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """At most `most` of the numbers below `count`, evenly spaced, from the first to the last."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int)


def batches_of(policy: Policy, dataset: ActionChunkDataset, samples: np.ndarray, size: int) -> Iterator[tuple[int, Batch]]:
    """The samples in batches on the policy's device, each with the number of its first one."""
    for number in range(0, len(samples), size):
        batch = dataset.__getitems__(samples[number : number + size])
        yield number, tree_map(lambda tensor: tensor.to(policy.device), batch)


def _describe(sums: np.ndarray, counts: np.ndarray, data: Demonstrations) -> dict[str, Any]:
    """Mean absolute differences in raw units and in standard deviations: over all, by joint, and by step of the chunk; from
    their sums (t, a) over `counts` (t,) valid actions. None for a joint without a standard deviation, since it stands still in
    the training split, and for a step that no episode is long enough for."""
    std = data.statistics.action.bounded(data.statistics.action.std).astype(float)
    found: dict[str, Any] = {"by_joint": {}, "by_step": {}}
    for unit, scale in (("raw", np.ones_like(std)), ("std", std)):
        moving = scale > 0
        scaled = sums[:, moving] / scale[moving]
        joints = dict(zip(np.array(data.features.action)[moving].tolist(), scaled.sum(axis=0) / counts.sum(), strict=True))
        steps = scaled.sum(axis=1) / np.maximum(counts * moving.sum(), 1)
        found[unit] = round_(scaled.sum() / max(counts.sum() * moving.sum(), 1))
        found["by_joint"][unit] = {name: round_(joints[name]) if name in joints else None for name in data.features.action}
        found["by_step"][unit] = [round_(value) if count else None for value, count in zip(steps, counts, strict=True)]
    return {unit: found[unit] for unit in ("std", "raw", "by_joint", "by_step")}
