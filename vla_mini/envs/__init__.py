"""Gymnasium environments with scripted experts. Importing this package registers them."""

import gymnasium

gymnasium.register(
    id="vla_mini/ToyPick-v0",
    entry_point="vla_mini.envs.toy_pick.environment:ToyPick",
    max_episode_steps=48,
)


def make(env_id: str) -> gymnasium.Env:
    """The environment registered as `env_id`, without Gymnasium's passive checks (they cost more than a step). ValueError for
    one that is not registered."""
    try:
        return gymnasium.make(env_id, disable_env_checker=True)
    except gymnasium.error.Error as error:
        raise ValueError(f"env={env_id!r} is not known to Gymnasium: {error}") from error
