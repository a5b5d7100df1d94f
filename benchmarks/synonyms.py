"""How often a saved policy succeeds with words that training never used: those by which methods may be selected.

python benchmarks/synonyms.py policy=DIR [episodes=200] [seed=0] [output=benchmarks/results/synonyms.json]
python benchmarks/synonyms.py encoder=DIR [episodes=200] ...

On selection scenes, in words of its own: the final evaluation (evaluation.further_splits=[synonyms]) has others. The second
command measures what a text encoder's vectors alone achieve, with both lists of words, on scenes of its own: how often the
named object is, of those in the scene, the one whose training words are the most similar to the instruction. That is a policy
with perfect vision that compares word vectors.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks._machine import print_table, read_arguments, save
from vla_mini.envs.toy_pick import phrasings, scene
from vla_mini.envs.toy_pick.spec import SPEC

# Written down as those of vla_mini/envs/toy_pick/phrasings.py were; none of them is among those.
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
        raise SystemExit("give policy=runs/toy_pick_synonyms/latest/policy, or encoder=DIR")
    settings = {name: arguments[name] for name in ("episodes", "seed")}
    if arguments["encoder"]:
        figures = {"evaluation": compare_words(arguments["encoder"], **settings)}
        with development_words():
            figures["development"] = compare_words(arguments["encoder"], **settings)
        rows = [(f"{words}, {split}", *rates.values()) for words, of in figures.items() for split, rates in of.items()]
        print_table(rows, header=("", *METHODS))
        save(settings | figures, arguments["output"])
        return
    splits = measure(Policy.from_pretrained(arguments["policy"]), **settings)
    names = ("success_rate", "wrong_object_rate")
    print_table([(split, *(figures[name] for name in names)) for split, figures in splits.items()], header=("split", *names))
    save(settings | {"policy": arguments["policy"], "splits": splits}, arguments["output"])


def measure(policy: Any, *, episodes: int, seed: int) -> dict[str, dict[str, Any]]:
    """The figures of each split with synonyms, as in evaluation/metrics.json."""
    from vla_mini.evaluation.metrics import summarize_split
    from vla_mini.evaluation.rollout import rollout

    options = {"purpose": "selection", "seed": seed}
    with development_words():
        return {
            split: summarize_split(rollout(policy, SPEC.id, episodes=range(episodes), options=options | {"split": split}), SPEC)
            for split in SPEC.further_splits
        }


METHODS = ("word by word", "as a whole")


def compare_words(path: str, *, episodes: int, seed: int) -> dict[str, dict[str, float]]:
    """How often the most similar object is the named one, for each split with synonyms: by the vectors of the words for colour
    and shape, whose positions are known, and by the mean vector of the whole sentence."""
    language = load_language(path)
    pairs = list(itertools.product(phrasings.COLOURS, phrasings.SHAPES))
    instructions = {pair: [text.format(colour=pair[0], shape=pair[1]) for text in phrasings.TRAINING] for pair in pairs}
    words = {
        word: mean_of(vector_of(language, text, word) for pair in pairs if word in pair for text in instructions[pair])
        for word in (*phrasings.COLOURS, *phrasings.SHAPES)
    }
    sentences = {pair: mean_of(vector_of(language, text) for text in instructions[pair]) for pair in pairs}
    rates = {}
    for split in ("synonyms", "synonyms_colours", "synonyms_shapes"):
        found = []
        for episode in range(episodes):
            sample = scene.sample_scene(np.random.default_rng([seed, episode]), split=split)
            pair = sample.objects[sample.target].pair
            synonyms = [next(w for w in (old, *scene.SYNONYMS[old]) if w in sample.instruction.split()) for old in pair]
            colours, shapes = (
                similarities(vector_of(language, sample.instruction, synonym), {old: words[old] for old in olds})
                for synonym, olds in zip(synonyms, (phrasings.COLOURS, phrasings.SHAPES), strict=True)
            )
            by_sentence = similarities(vector_of(language, sample.instruction), sentences)
            scores = (
                [colours[each.colour] + shapes[each.shape] for each in sample.objects],
                [by_sentence[each.pair] for each in sample.objects],
            )
            found.append([int(np.argmax(score)) == sample.target for score in scores])
        rates[split] = dict(zip(METHODS, np.mean(found, axis=0).tolist(), strict=True))
    return rates


def load_language(path: str) -> Any:
    """The frozen text encoder in `path`, as language=huggingface uses it."""
    import torch

    from vla_mini.language.huggingface import HuggingFaceLanguage
    from vla_mini.parts import FitData, ObservationSpec
    from vla_mini.pretrained import unit_statistics

    features = SPEC.features
    language = HuggingFaceLanguage(ObservationSpec(features.cameras, features.image_size, features.state), path=path)
    language.fit(FitData((), torch.zeros(0, 1, features.action_size), unit_statistics(features)))  # loads its weights
    return language.eval()


def vector_of(language: Any, sentence: str, word: str | None = None) -> np.ndarray:
    """The mean of the encoder's vectors of one word's tokens in a sentence, or of all tokens."""
    vectors = language(*language.tokenize([sentence]))[0].numpy()
    if word is None:
        return vectors.mean(axis=0)
    start, end = re.search(rf"\b{word}\b", sentence).span()
    inside = [start <= a < b <= end for a, b in language.tokenizer.encode(sentence).offsets]
    return vectors[inside].mean(axis=0)


def mean_of(vectors: Iterable[np.ndarray]) -> np.ndarray:
    return np.mean(list(vectors), axis=0)


def similarities(vector: np.ndarray, known: Mapping[Any, np.ndarray]) -> dict[Any, float]:
    """The cosine similarity with each of the known vectors, after the mean of these is subtracted."""
    centre = mean_of(known.values())

    def unit(each: np.ndarray) -> np.ndarray:
        return (each - centre) / np.linalg.norm(each - centre)

    return {name: float(unit(vector) @ unit(each)) for name, each in known.items()}


@contextmanager
def development_words() -> Iterator[None]:
    """Inside, the environment uses the synonyms above."""
    with patch.multiple(scene, SYNONYMS=DEVELOPMENT, SYNONYM_VERBS=DEVELOPMENT_VERBS):
        yield


if __name__ == "__main__":
    main()
