"""compare.py's command line -> its own settings, and for each variant what scripts/train.py is told.

    action=regression,flow optimizer.lr=1e-3  ──▶  {"regression": ["action=regression", "optimizer.lr=1e-3"],
                                                    "flow":       ["action=flow",       "optimizer.lr=1e-3"]}

What is not compare.py's own is train.py's, for all variants, and stands last, so that the command line overrides a study.
Where it has several values, separated by commas, each makes a variant: Hydra's notation of a sweep.
"""

import itertools
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from vla_mini.config.compose import PATHS, TEXTS, groups_of

# What is the same for all variants, and how it is said instead.
DECIDED = {
    "seed": "say seeds=[0,1]",
    "trainer.max_steps": "say budget.steps=400",
    "evaluation.every_n_steps": "say budget.selections=20",
    "hydra.run.dir": "say output=DIR",
    "resume": "what was finished is found again without it",
}
SCENES = (("env", "id"), ("evaluation", "episodes"), ("evaluation", "seed"), ("evaluation", "selection_episodes"))


def refuse_base(arguments: Sequence[str]) -> None:
    """ValueError where compare.py's own arguments hold a study's base."""
    for argument in arguments:
        if argument.partition("=")[0].lstrip("+") == "base":
            raise ValueError(
                f"{argument}: on a command line train.py's settings stand by themselves, such as experiment=toy_pick"
            )


def expand(settings: Mapping[str, Any], training: Sequence[str]) -> dict[str, list[str]]:
    """Each variant by name, with all that train.py is told for it: the base, what is its own, the command line."""
    if not isinstance(settings["variants"], dict):
        raise ValueError(f"variants={settings['variants']} is not a group of settings: say variants.NAME='action=flow'")
    named = {name: _words(f"variants.{name}", value) for name, value in settings["variants"].items() if value is not None}
    base = _words("base", settings["base"])
    choices = [_values(argument) for argument in training]
    keys = [values[0].partition("=")[0] for values in choices if len(values) > 1]
    if not named and not keys:
        raise ValueError("nothing to compare: give a setting several values, such as action=regression,flow, or study=heads")
    variants = {}
    for (name, own), chosen in itertools.product((named or {"": []}).items(), itertools.product(*choices)):
        swept = [value for value, values in zip(chosen, choices, strict=True) if len(values) > 1]
        label = " ".join(filter(None, [name, *(_short(argument, keys) for argument in swept)]))
        variants[label] = [*base, *own, *chosen]
    return variants


def refuse_decided(variants: Mapping[str, Sequence[str]], *, selections: int | None) -> None:
    """ValueError where what train.py is told for a variant is the comparison's to decide."""
    for variant, given in variants.items():
        for argument in given:
            key = argument.partition("=")[0].lstrip("+")
            if key in DECIDED and (selections or key != "evaluation.every_n_steps"):
                raise ValueError(f"{argument} is not for one variant ({variant}) to decide: {DECIDED[key]}")


def refuse_unfair(variants: Mapping[str, Mapping[str, Any]], *, seconds: float | None) -> None:
    """ValueError for variants, by their checked settings, that cannot be compared."""
    for variant, settings in variants.items():
        if seconds and settings["unfreeze_at"]:
            name, step = next(iter(settings["unfreeze_at"].items()))
            raise ValueError(
                f"variant {variant}: unfreeze_at.{name}={step} counts steps, of which nobody knows how many budget.seconds="
                f"{seconds:g} will be: say budget.steps=400"
            )
    for (first, one), (second, other) in itertools.combinations(variants.items(), 2):
        for group, key in SCENES:
            if one[group][key] != other[group][key]:
                both = f"{one[group][key]} of variant {first} and {other[group][key]} of {second}"
                raise ValueError(f"{group}.{key}: {both} differ, but all are evaluated on the same scenes")
        if {**one, "run_dir": ""} == {**other, "run_dir": ""}:
            raise ValueError(f"variants {first} and {second} come to the same settings")


def _words(key: str, value: Any) -> list[str]:
    """`action=flow optimizer.lr=1e-3`, split as the shell does; a list is taken as it stands."""
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(f"{key}={value}: {error}") from error
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{key}={value} is not what train.py can be told: text such as 'action=flow', or a list of it")
    return words


def _values(argument: str) -> list[str]:
    """The argument, once for each value of its sweep: ["lr=1", "lr=2"] for "lr=1,2"."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key = argument.partition("=")[0].lstrip("+")
    if key in TEXTS | PATHS:  # taken as they stand
        return [argument]
    try:
        override = OverridesParser.create().parse_override(f"++{argument.lstrip('+')}")
        if not override.is_sweep_override():
            return [argument]
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    except HydraException:
        return [argument]  # which train.py's own check refuses, by name


def _short(argument: str, keys: Sequence[str]) -> str:
    """A variant's name by what it was given: "flow" for action=flow, "lr=0.001" for optimizer.lr=0.001."""
    key, _, value = argument.partition("=")
    if key in groups_of("train"):
        return value
    last = key.rpartition(".")[2]
    return argument if [other.rpartition(".")[2] for other in keys].count(last) > 1 else f"{last}={value}"
