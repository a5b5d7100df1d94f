"""(purpose, seed, episode) -> random generator, or a simulator's seed: all scenes are drawn from them.

No two purposes share one.
"""

import numpy as np

PURPOSES = ("demonstration", "validation", "selection", "evaluation")


def episode_generator(purpose: str, seed: int, episode: int, *, stream: int = 0) -> np.random.Generator:
    """The generator of an episode for one of PURPOSES; `stream` numbers independent ones within it."""
    entropy = np.random.SeedSequence([PURPOSES.index(purpose), seed, episode], spawn_key=(stream,))
    return np.random.Generator(np.random.PCG64(entropy))


def scene_seed(purpose: str, seed: int, episode: int) -> int:
    """For simulators that draw the scene from a seed themselves. An evaluation with seed 0 has LeRobot's: 1000 + episode."""
    return 1000 + episode + 10_000 * seed + 10**12 * (len(PURPOSES) - 1 - PURPOSES.index(purpose))
