"""(purpose, seed, episode) -> random generator: the one source of chance, so that no two purposes ever share a scene."""

import numpy as np

PURPOSES = ("demonstration", "validation", "selection", "evaluation")


def episode_generator(purpose: str, seed: int, episode: int, *, stream: int = 0) -> np.random.Generator:
    """A generator of its own for each purpose, seed, episode and, within an episode, stream of decisions."""
    if purpose not in PURPOSES:
        raise ValueError(f"purpose={purpose!r} is not one of {', '.join(PURPOSES)}")
    entropy = np.random.SeedSequence([PURPOSES.index(purpose), seed, episode], spawn_key=(stream,))
    return np.random.Generator(np.random.PCG64(entropy))
