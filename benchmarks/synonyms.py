"""How often a saved policy succeeds when it is told words that training never said: those by which a method may be chosen.

python benchmarks/synonyms.py policy=DIR [episodes=200] [seed=0] [output=benchmarks/results/synonyms.json]
python benchmarks/synonyms.py encoder=DIR [episodes=200] ...

On selection scenes, in words of its own: the final examination (evaluation.further_splits=[synonyms]) has others. The second
asks what a text encoder's vectors alone are good for, in both lists of words, on scenes of its own: how often the thing that is
named is, of those in the scene, the nearest to what is said. That is a policy with perfect eyes that reads by likeness.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks._machine import print_table, read_arguments, save
from vla_mini.envs.toy_pick import scene, wordings

# Written down as those of vla_mini/envs/toy_pick/wordings.py were; none of them is among those.
DEVELOPMENT = {
    "red": ("cherry", "maroon", "burgundy"),
    "green": ("jade", "mint", "moss"),
    "blue": ("cobalt", "cerulean", "denim"),
    "yellow": ("canary", "banana", "blond"),
    "purple": ("plum", "mauve", "amethyst"),
    "orange": ("carrot", "mandarin", "ginger"),
    "cube": ("brick", "square", "crate"),
    "ball": ("bead", "marble", "bubble"),
    "cone": ("spike", "wedge", "spire"),
    "star": ("sparkle", "comet", "twinkle"),
}
DEVELOPMENT_VERBS = (
    "snatch the {colour} {shape}",
    "gather the {colour} {shape} from the table",
    "please heave the {colour} {shape}",
    "could you elevate the {colour} {shape}",
    "i want you to grasp the {colour} {shape}",
    "obtain the {colour} {shape} that is on the table",
)


def main() -> None:
    from vla_mini import Policy

    arguments = read_arguments(policy="", encoder="", episodes=200, seed=0, output="benchmarks/results/synonyms.json")
    if not arguments["policy"] and not arguments["encoder"]:
        raise SystemExit("say which: policy=runs/toy_pick_synonyms/latest/policy, or encoder=DIR")
    settings = {name: arguments[name] for name in ("episodes", "seed")}
    if arguments["encoder"]:
        figures = {"examination": read(arguments["encoder"], **settings)}
        with development_words():
            figures["development"] = read(arguments["encoder"], **settings)
        rows = [(f"{words}, {split}", *rates.values()) for words, of in figures.items() for split, rates in of.items()]
        print_table(rows, header=("", *READERS))
        save(settings | figures, arguments["output"])
        return
    splits = measure(Policy.from_pretrained(arguments["policy"]), **settings)
    names = ("success_rate", "wrong_object_rate")
    print_table([(split, *(figures[name] for name in names)) for split, figures in splits.items()], header=("split", *names))
    save(settings | {"policy": arguments["policy"], "splits": splits}, arguments["output"])


def measure(policy: Any, *, episodes: int, seed: int) -> dict[str, dict[str, Any]]:
    """Of each split with synonyms, what evaluation/metrics.json says of one."""
    from vla_mini.evaluation.metrics import summarise_split
    from vla_mini.evaluation.rollout import rollout

    options = {"purpose": "selection", "seed": seed}
    with development_words():
        return {
            split: summarise_split(
                rollout(policy, "vla_mini/ToyPick-v0", episodes=range(episodes), options=options | {"split": split})
            )
            for split in scene.SYNONYM_SPLITS
        }


READERS = ("word by word", "as a whole")


def read(path: str, *, episodes: int, seed: int) -> dict[str, dict[str, float]]:
    """Of each split with synonyms, how often the nearest thing is the one that is named: by the likeness of its colour's and
    its shape's word, for a reader who knows where they stand; and by that of the whole sentence."""
    from vla_mini.language.huggingface import HuggingFaceLanguage

    language = HuggingFaceLanguage(path=path)
    pairs = list(itertools.product(wordings.COLOURS, wordings.SHAPES))
    said = {pair: [sentence.format(colour=pair[0], shape=pair[1]) for sentence in wordings.TRAINING] for pair in pairs}
    words = {
        word: mean_of(vector_of(language, sentence, word) for pair in pairs if word in pair for sentence in said[pair])
        for word in (*wordings.COLOURS, *wordings.SHAPES)
    }
    wholes = {pair: mean_of(vector_of(language, sentence) for sentence in said[pair]) for pair in pairs}
    rates = {}
    for split in ("synonyms", "synonyms_colours", "synonyms_shapes"):
        found = []
        for episode in range(episodes):
            drawn = scene.sample_scene(np.random.default_rng([seed, episode]), split=split)
            colour, shape = drawn.things[drawn.target].pair
            new = [next(w for w in (old, *scene.SYNONYMS[old]) if w in drawn.instruction.split()) for old in (colour, shape)]
            by_word = [
                likeness(vector_of(language, drawn.instruction, word), {old: words[old] for old in olds})
                for word, olds in zip(new, (wordings.COLOURS, wordings.SHAPES), strict=True)
            ]
            by_whole = likeness(vector_of(language, drawn.instruction), wholes)
            scores = (
                [by_word[0][thing.colour] + by_word[1][thing.shape] for thing in drawn.things],
                [by_whole[thing.pair] for thing in drawn.things],
            )
            found.append([int(np.argmax(score)) == drawn.target for score in scores])
        rates[split] = dict(zip(READERS, np.mean(found, axis=0).tolist(), strict=True))
    return rates


def vector_of(language: Any, sentence: str, word: str | None = None) -> np.ndarray:
    """The mean of the encoder's vectors of one word's tokens in a sentence, or of all."""
    vectors = language(*language.tokenize([sentence]))[0].numpy()
    if word is None:
        return vectors.mean(axis=0)
    start, end = re.search(rf"\b{word}\b", sentence).span()
    inside = [start <= a < b <= end for a, b in language.tokenizer.encode(sentence).offsets]
    return vectors[inside].mean(axis=0)


def mean_of(vectors: Iterable[np.ndarray]) -> np.ndarray:
    return np.mean(list(vectors), axis=0)


def likeness(vector: np.ndarray, known: Mapping[Any, np.ndarray]) -> dict[Any, float]:
    """The cosine with each of the known ones, after what these have in common is taken away."""
    centre = mean_of(known.values())

    def unit(each: np.ndarray) -> np.ndarray:
        return (each - centre) / np.linalg.norm(each - centre)

    return {name: float(unit(vector) @ unit(each)) for name, each in known.items()}


@contextmanager
def development_words() -> Iterator[None]:
    """Inside, the environment takes its synonyms from here."""
    with patch.multiple(scene, SYNONYMS=DEVELOPMENT, SYNONYM_VERBS=DEVELOPMENT_VERBS):
        yield


if __name__ == "__main__":
    main()
