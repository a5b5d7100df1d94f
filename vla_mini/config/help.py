"""`--help`, read from configs/ alone: no Hydra, no torch, so that it answers at once."""

import re
from typing import Any

from vla_mini.config.check import MISSING
from vla_mini.config.compose import command_text, groups_of, read_command

EXAMPLES = {
    "train": [
        "python scripts/train.py experiment=toy_pick",
        "python scripts/train.py experiment=toy_pick action=bins optimizer.lr=1e-3 seed=1",
        "python scripts/train.py experiment=toy_pick trainer.devices=4",
    ],
    "collect": [
        "python scripts/collect.py env=toy_pick episodes=2000 output=data/toy_pick",
        "python scripts/collect.py env=toy_pick episodes=64 output=data/small seed=1",
    ],
    "evaluate": [
        "python scripts/evaluate.py policy=runs/toy_pick/latest/policy",
        "python scripts/evaluate.py policy=runs/toy_pick/latest/policy episodes=50 output=evaluations/quick",
    ],
    "infer": [
        'python scripts/infer.py policy=DIR image=scene.png instruction="pick up the red cube" state=[0.1,0.2,1.0,0.0]',
        'python scripts/infer.py policy=DIR image=scene.png instruction="lift the blue ball" state=[0,0,1,0] mode=grad',
    ],
    "compare": [
        "python scripts/compare.py action=regression,flow budget.steps=400",
        "python scripts/compare.py optimizer=adam optimizer.lr=1e-3,3e-3 seeds=[0] budget.steps=400 experiment=toy_pick",
        'python scripts/compare.py variants.one="action=flow" variants.two="action=flow optimizer.lr=1e-3" budget.seconds=60',
        "python scripts/compare.py study=words parameters.encoder=DIR",
    ],
    "gradients": [
        "python scripts/gradients.py policy=runs/toy_pick/latest/policy",
        "python scripts/gradients.py policy=runs/toy_pick/latest/policy data=data/toy_pick output=gradients",
        "python scripts/gradients.py experiment=toy_pick vision=patch",
    ],
    "doctor": [
        "python scripts/doctor.py experiment=toy_pick",
        "python scripts/doctor.py experiment=toy_pick action=flow data.root=data/mine output=checked",
    ],
}

NOTES = {
    "compare": [
        "All other settings are those of scripts/train.py, for every variant; where one has several values, separated by",
        'commas, each makes a variant. Variants that differ in more have names: variants.NAME="what train.py is told".',
    ],
}


def help_text(name: str, purpose: str) -> str:
    """The command's purpose, its groups with their variants, its settings with their defaults, two examples."""
    lines = [purpose.strip(), "", f"usage: python scripts/{name}.py [group=variant] [key=value]"]
    chosen = {
        group: variant
        for entry in read_command(name).get("defaults", [])
        if isinstance(entry, dict)
        for group, variant in entry.items()
    }
    groups = {group: variants for group, variants in groups_of(name).items() if variants}
    if groups:
        lines += ["", "groups (each configs/<group>/<variant>.yaml; * = default; its keys are set by group.key=value):"]
        for group, variants in groups.items():
            shown = [f"{variant}*" if variant == chosen.get(group) else variant for variant in variants]
            lines.append(f"  {group:<12} {'  '.join(shown)}")
    settings = _settings(name)
    width = max((len(setting) for setting, _ in settings), default=0)
    lines += ["", "settings:"] + [f"  {setting:<{width}}  {comment}".rstrip() for setting, comment in settings]
    lines += ["", *NOTES[name]] if name in NOTES else []
    lines += ["", "examples:"] + [f"  {example}" for example in EXAMPLES.get(name, [])]
    lines += ["", "  --help        this", "  --cfg job     print the composed config and stop"]
    return "\n".join(lines)


def _settings(name: str) -> list[tuple[str, str]]:
    """("seed=0", "its comment in the YAML file") for each setting of configs/<name>.yaml."""
    comments = _comments(command_text(name))
    settings = []
    command = read_command(name)
    run_folder = command.pop("hydra", None)
    for key, value in command.items():
        if key == "defaults":
            continue
        for path, leaf in _leaves(key, value):
            settings.append((f"{path}={_show(leaf)}", comments.get(path, "")))
    if run_folder:
        settings.append(("hydra.run.dir=DIR", "puts the run's folder elsewhere"))
    return settings


def _comments(text: str) -> dict[str, str]:
    """The comment behind each key of a YAML file of at most two levels, by its dotted path."""
    comments, section = {}, ""
    for indent, key, comment in re.findall(r"^( *)(\w+):[^#\n]*(?:# *(.+))?$", text, flags=re.MULTILINE):
        section = section if indent else key
        comments[f"{section}.{key}" if indent else key] = comment
    return comments


def _leaves(path: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        return [(path, value)]
    return [leaf for key, item in value.items() for leaf in _leaves(f"{path}.{key}", item)]


def _show(value: Any) -> str:
    if value == MISSING:
        return "(required)"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
