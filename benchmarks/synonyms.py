"""How often a saved policy succeeds when it is told words that training never said: those by which a method may be chosen.

python benchmarks/synonyms.py policy=DIR [episodes=200] [seed=0] [output=benchmarks/results/synonyms.json]

On selection scenes, in words of its own: the final examination (evaluation.further_splits=[synonyms]) has others.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from benchmarks._machine import print_table, read_arguments, save
from vla_mini.envs.toy_pick import scene

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

    arguments = read_arguments(policy="", episodes=200, seed=0, output="benchmarks/results/synonyms.json")
    if not arguments["policy"]:
        raise SystemExit("say which: policy=runs/toy_pick_synonyms/latest/policy")
    settings = {name: arguments[name] for name in ("episodes", "seed")}
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


@contextmanager
def development_words() -> Iterator[None]:
    """Inside, the environment takes its synonyms from here."""
    with patch.multiple(scene, SYNONYMS=DEVELOPMENT, SYNONYM_VERBS=DEVELOPMENT_VERBS):
        yield


if __name__ == "__main__":
    main()
