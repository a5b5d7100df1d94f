"""env id -> its `EnvSpec` (get_spec), one environment (make), several that are stepped together (make_vec).

All are Gymnasium environments that derive from `Environment`. Importing this package registers ours. An id may hold arguments
of the environment's class: "vla_mini/MetaWorld-v0?task=reach&image_size=96".
"""

import functools
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

import gymnasium
import numpy as np

from vla_mini.envs.libero.suites import SUITES, env_id
from vla_mini.envs.spec import Environment, EnvSpec
from vla_mini.envs.toy_pick.spec import SPEC as TOY_PICK
from vla_mini.utils.errors import as_value_error, show
from vla_mini.utils.features import Features

__all__ = ["EnvSpec", "Environment", "check_fits", "get_spec", "make", "make_vec"]

gymnasium.register(TOY_PICK.id, "vla_mini.envs.toy_pick.environment:ToyPick", max_episode_steps=TOY_PICK.max_episode_steps)
# Those below need packages that are imported once one is made.
gymnasium.register("vla_mini/MetaWorld-v0", "vla_mini.envs.metaworld.environment:MetaWorld", max_episode_steps=500)
gymnasium.register("vla_mini/PushT-v0", "vla_mini.envs.pusht:PushT", max_episode_steps=300)
for _name, (*_, _steps) in SUITES.items():
    _class = "vla_mini.envs.libero.environment:Libero"
    gymnasium.register(env_id(_name), _class, max_episode_steps=_steps, kwargs={"suite": _name})


def make(env_id: str) -> gymnasium.Env:
    """The environment registered as `env_id`; `.unwrapped` is the `Environment` itself.

    - env_id: as in Gymnasium; "module:namespace/Name-v0" first imports the module that registers it

    Raises ValueError where it is not registered, is no `Environment`, does not take these arguments, needs a package that is
    missing, or is not as its `env_spec` says.
    """
    name, arguments = _parse(env_id)
    unknown = as_value_error(f"env={env_id!r} is not known to Gymnasium", gymnasium.error.Error, ImportError)
    with as_value_error(f"env={env_id!r} does not take these arguments", TypeError), unknown:
        env = gymnasium.make(name, disable_env_checker=True, **arguments)  # Gymnasium's checks cost more than a step.
    kind = type(env.unwrapped)
    if not issubclass(kind, Environment):
        raise ValueError(f"env={env_id!r} has no env_spec: derive {kind.__name__} from vla_mini.envs.Environment")
    spec = env.unwrapped.env_spec
    expert, masks = kind.expert_action != Environment.expert_action, kind.object_masks != Environment.object_masks
    for flag, said, found in (("has_expert", spec.has_expert, expert), ("has_object_masks", spec.has_object_masks, masks)):
        if said != found:
            raise ValueError(f"env={env_id!r}: its env_spec says {flag}={said}, but of {kind.__name__} it is {found}")
    registered, described = env.spec.max_episode_steps, spec.max_episode_steps
    if registered != described:
        raise ValueError(f"env={env_id!r} is registered with max_episode_steps={registered}, but its env_spec has {described}")
    return env


@functools.cache
def get_spec(env_id: str) -> EnvSpec:
    """The description of the environment registered as `env_id`. ValueError as in `make`."""
    env = make(env_id)
    env.close()
    return env.unwrapped.env_spec


class PauseAfterEpisode(gymnasium.Wrapper):
    """An environment that does nothing after a reset without a seed: it costs nothing once no episode is left for it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._paused, info = seed is None, {}
        if not self._paused:
            self._observation, info = self.env.reset(seed=seed, options=options)
        return self._observation, info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._paused:
            return self._observation, 0.0, False, False, {}
        self._observation, *outcome = self.env.step(action)
        return self._observation, *outcome


def make_vec(env_id: str, num_envs: int) -> gymnasium.vector.VectorEnv:
    """`num_envs` environments that are stepped together, in this process or in one each, as the spec's `vectorization` says.

    None resets itself: those whose episode is over have to be reset before the next step, by
    `reset(seed=[...], options={"reset_mask": bool (num_envs,), ...})`, each with its next episode as seed, or None to pause it.
    """
    mode, settings = get_spec(env_id).vectorization, {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}
    if mode == "async":
        # Gymnasium (1.4) reads texts from shared memory only once, so that instructions would never change. And forking a
        # process that has threads, such as torch's, can hang.
        settings |= {"shared_memory": False, "context": "spawn"}
    options = {"vector_kwargs": settings, "wrappers": (PauseAfterEpisode,), "disable_env_checker": True}
    name, arguments = _parse(env_id)
    return gymnasium.make_vec(name, num_envs, vectorization_mode=mode, **options, **arguments)


def _parse(env_id: str) -> tuple[str, dict[str, str]]:
    """The id as it is registered, and the arguments in it."""
    name, _, arguments = env_id.partition("?")
    return name, dict(parse_qsl(arguments))


def check_fits(spec: EnvSpec, features: Features, *, whose: str, hint: str, names: Iterable[str] = Features._fields) -> None:
    """ValueError where these features, in those of `names`, are not the environment's.

    - whose, hint: "the dataset DIR" or "the policy DIR", and what to do, for the message
    """
    for name in names:
        ours, theirs = getattr(spec.features, name), getattr(features, name)
        if ours != theirs:
            difference = f"{name} is {show(ours)} in the environment, but {show(theirs)} here"
            raise ValueError(f"env={spec.id} does not fit {whose}: {difference}; {hint}")
