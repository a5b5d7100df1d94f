"""(purpose, seed, episode) -> random generator. All scenes are drawn from these, so that no two purposes share one."""

import numpy as np

PURPOSES = ("demonstration", "validation", "selection", "evaluation")


def episode_generator(purpose: str, seed: int, episode: int, *, stream: int = 0) -> np.random.Generator:
    """The generator of an episode for one of PURPOSES; `stream` numbers independent ones within it."""
    entropy = np.random.SeedSequence([PURPOSES.index(purpose), seed, episode], spawn_key=(stream,))
    return np.random.Generator(np.random.PCG64(entropy))
