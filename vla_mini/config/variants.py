"""The command line of compare.py -> its own settings, and for each variant the arguments of train.py.

    action=regression,flow optimizer.lr=1e-3  ──▶  {"regression": ["action=regression", "optimizer.lr=1e-3"],
                                                    "flow":       ["action=flow",       "optimizer.lr=1e-3"]}

Arguments that are not compare.py's own are train.py's, for all variants, and come last, so that they override a study. Where
one has several values, separated by commas (Hydra's notation of a sweep), each makes a variant.
"""

import itertools
import shlex
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

from vla_mini.config.command_settings import CompareSettings
from vla_mini.config.compose import compose, is_text, key_of, parse_values, split, type_of
from vla_mini.config.sources import groups_of
from vla_mini.settings import TrainSettings
from vla_mini.utils.errors import as_value_error, show

# What the comparison sets for all variants, and the setting of compare.py that decides it.
MANAGED = {
    "seed": "give seeds=[0,1]",
    "trainer.max_steps": "give budget.steps=400",
    "evaluation.every_n_steps": "give budget.selections=20",
    "hydra.run.dir": "give output=DIR",
    "run_dir": "give output=DIR",
    "resume": "finished runs are found again without it",
}
# What decides in which scenes a policy is evaluated, and so has to be the same for all variants.
SCENES = ("env.id", "evaluation.episodes", "evaluation.seed", "evaluation.selection_episodes")


def compose_comparison(arguments: Sequence[str]) -> dict[str, Any]:
    """The settings of compare.py, resolved and not yet validated; each variant with all its arguments."""
    own, training = split("compare", arguments)
    given = {key_of(argument): argument for argument in own}
    if "base" in given:
        raise ValueError(f"{given['base']}: on the command line give the settings of train.py directly: experiment=toy_pick")
    settings = compose("compare", own)
    study = given.get("study", "").partition("=")[2]
    return settings | {"variants": _expand(settings, training), "name": settings["name"] or study or "comparison"}


def _expand(settings: Mapping[str, Any], training: Sequence[str]) -> dict[str, list[str]]:
    """Each variant by name, with all its arguments: those of the base, its own, those of the command line."""
    if not isinstance(settings["variants"], dict):
        raise ValueError(f"variants={settings['variants']} is not a group of settings: give variants.NAME='action=flow'")
    named = {name: value for name, value in settings["variants"].items() if value not in (None, "null")}
    named = {name: _words(f"variants.{name}", value) for name, value in named.items()}
    base = _words("base", settings["base"])
    choices = [_values(argument) for argument in training]
    keys = [key_of(values[0]) for values in choices if len(values) > 1]
    if not named and not keys:
        raise ValueError("nothing to compare: give a setting several values, such as action=regression,flow, or study=heads")
    variants = {}
    for (name, own), chosen in itertools.product((named or {"": []}).items(), itertools.product(*choices)):
        swept = [value for value, values in zip(chosen, choices, strict=True) if len(values) > 1]
        label = " ".join(filter(None, [name, *(_short(argument, keys) for argument in swept)]))
        variants[label] = [*base, *own, *chosen]
    return variants


def _words(key: str, value: Any) -> list[str]:
    """`action=flow optimizer.lr=1e-3`, split as by the shell; a list is taken as it stands."""
    with as_value_error(f"{key}={value}", ValueError):
        words = shlex.split(value) if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{key}={show(value)} is no list of train.py's arguments: give text such as 'action=flow', or a list")
    return words


def _values(argument: str) -> list[str]:
    """The argument, once for each value of its sweep: ["lr=1", "lr=2"] for "lr=1,2"."""
    key = key_of(argument)
    if is_text(type_of(TrainSettings, key.split("."))):
        return [argument]
    return [f"{key}={value}" for value in parse_values(f"++{argument.lstrip('+')}", several=True)]


def _short(argument: str, keys: Sequence[str]) -> str:
    """A variant's name by its own argument: "flow" for action=flow, "lr=0.001" for optimizer.lr=0.001."""
    key, _, value = argument.partition("=")
    if key in groups_of("train"):
        return value
    last = key.rpartition(".")[2]
    return argument if [other.rpartition(".")[2] for other in keys].count(last) > 1 else f"{last}={value}"


def check_variants(settings: CompareSettings, load: Callable[[list[str]], TrainSettings]) -> None:
    """ValueError for a variant that train.py would refuse, and for variants that cannot be compared."""
    budget, loaded = settings.budget, {}
    for variant, arguments in settings.variants.items():
        for argument in arguments:
            key = key_of(argument)
            if key in MANAGED and (budget.selections or key != "evaluation.every_n_steps"):
                raise ValueError(f"{argument} cannot be set for one variant ({variant}): {MANAGED[key]}")
    for variant, arguments in settings.variants.items():
        with as_value_error(f"variant {variant}", ValueError):
            loaded[variant] = load([*arguments, *([f"trainer.max_steps={budget.steps}"] if budget.steps else [])])
        for name, step in loaded[variant].unfreeze_at.items() if budget.seconds else ():
            raise ValueError(
                f"variant {variant}: unfreeze_at.{name}={step} counts steps, and their number is not known beforehand with "
                f"budget.seconds={budget.seconds:g}: give budget.steps=400"
            )
    for (first, one), (second, other) in itertools.combinations(loaded.items(), 2):
        for key in SCENES:
            here, there = map(attrgetter(key), (one, other))
            if here != there:
                both = f"{here} of variant {first} and {there} of {second}"
                raise ValueError(f"{key}: {both} differ, but all variants are evaluated on the same scenes")
        if one.model_copy(update={"run_dir": ""}) == other.model_copy(update={"run_dir": ""}):
            raise ValueError(f"variants {first} and {second} have the same settings")
