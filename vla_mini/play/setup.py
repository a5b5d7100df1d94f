"""The settings of scripts/play.py -> what the server needs: policies, what makes a visitor's session, and a batch."""

import copy
import tempfile
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import vla_mini.envs
from vla_mini.collection import collect
from vla_mini.data.chunks import ActionChunkDataset
from vla_mini.data.reader import Demonstrations, read_dataset
from vla_mini.play.scenes.recording import Recording
from vla_mini.play.server import Play
from vla_mini.play.session import SAVED, Policies, Session
from vla_mini.policy import Policy
from vla_mini.types import Batch
from vla_mini.utils.errors import as_value_error

if TYPE_CHECKING:
    from vla_mini.config.command_settings import PlaySettings

BATCH = 16  # samples
COMPARED = ("cameras", "state", "action")  # features that policy and environment share


def make_play(settings: "PlaySettings") -> Play:
    """ValueError where the policy, the run, the dataset or the environment is missing or does not fit."""
    source, setting = settings.policy, "policy"
    if settings.run is not None:
        source, setting = str(Path(settings.run) / "policy"), "run"
        if not Path(source).is_dir():
            missing = (
                "policy/ in it: it is no run, or has saved no policy yet" if Path(settings.run).is_dir() else "such folder"
            )
            raise ValueError(f"run={settings.run}: there is no {missing}")
    policy = Policy.from_pretrained(source, trust_remote_code=settings.trust_remote_code, setting=setting)
    if settings.num_steps is not None:
        policy.action.change(num_steps=settings.num_steps)
    policies: Policies = run_policies(settings.run, policy) if settings.run else {SAVED: lambda: policy}
    options = {"seed": settings.seed, "execute": settings.execute}
    if settings.data is not None:
        data = read_dataset(settings.data, image_size=policy.features.image_size, resize=policy.acting.resize)
        check_data(policy, data, name=settings.data)
        recording = partial(Recording, data, name=f"data={settings.data}")
        return tried(Play(lambda: Session(recording(), policies, **options), policy, lambda: make_batch(policy, data)))
    env_id = settings.env.address if settings.env else policy.source.get("env")
    if env_id is None:
        raise ValueError(f"{setting}={source} was trained without an environment: give data=DIR, or env=toy_pick")
    whose, hint = f"the policy {source}", f"it was trained for {policy.source.get('env', 'env=none')}"
    vla_mini.envs.check_fits(vla_mini.envs.get_spec(env_id), policy.features, whose=whose, hint=hint, names=COMPARED)
    make_env = partial(vla_mini.envs.make, env_id)
    return tried(Play(lambda: Session(make_env(), policies, **options), policy, lambda: collect_batch(policy, env_id)))


def tried(play: Play) -> Play:
    """After one visit: what cannot act is refused before anyone comes, and the first visitor waits less."""
    play.make_session().close()
    return play


def run_policies(run: str, saved: Policy) -> Policies:
    """`step N` for each checkpoint of a run that saved the policy `saved`. ValueError where the run has no checkpoint."""
    folder = Path(run) / "checkpoints"
    if not any(folder.glob("step_*.ckpt")):
        raise ValueError(f"run={run}: there is no checkpoint in it: {folder} has no step_*.ckpt")
    from vla_mini.training.checkpoints import numbered  # Lightning takes seconds to import

    load = lru_cache(maxsize=4)(partial(load_checkpoint, like=copy.deepcopy(saved)))  # a copy, since visitors use `saved`
    return {f"step {step}": partial(load, path) for step, path in sorted(numbered(folder))} | {SAVED: lambda: saved}


def load_checkpoint(path: Path, like: Policy) -> Policy:
    """A policy as `like`, with the weights of a checkpoint. ValueError where it is damaged, or is of another policy."""
    from vla_mini.training.checkpoints import read_weights

    policy = copy.deepcopy(like)
    with as_value_error(f"{path} does not fit the run's policy", RuntimeError):
        policy.load_state_dict(read_weights(path))
    return policy.eval()


def check_data(policy: Policy, data: Demonstrations, *, name: str) -> None:
    """ValueError for frames that the policy does not take."""
    for feature in COMPARED:
        expected, found = getattr(policy.features, feature), getattr(data.features, feature)
        if expected != found:
            raise ValueError(
                f"data={name}: its {feature} is {', '.join(found)}, but that of the policy is {', '.join(expected)}"
            )


def collect_batch(policy: Policy, env_id: str) -> Batch:
    """Samples of a few demonstrations of the environment's expert. ValueError where it has none."""
    spec = vla_mini.envs.get_spec(env_id)
    if not spec.has_expert:
        raise ValueError(f"{env_id} has no scripted expert to learn from: give data=DIR")
    with tempfile.TemporaryDirectory() as folder:
        collect(env_id, Path(folder) / "data", episodes=max(1, BATCH // spec.num_tasks), num_workers=1)
        return make_batch(policy, read_dataset(Path(folder) / "data", image_size=policy.features.image_size))


def make_batch(policy: Policy, data: Demonstrations) -> Batch:
    """BATCH random samples of the frames to train on, the same each time."""
    options = {"horizon": policy.horizon, "history": policy.history, "tokenize": policy.tokenize}
    dataset = ActionChunkDataset(data, split="train", targets=policy.auxiliary_targets(data), **options)
    return dataset.__getitems__(np.random.default_rng(0).permutation(len(dataset))[:BATCH])
