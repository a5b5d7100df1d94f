"""`--help`, read from configs/ alone, without Hydra and torch, so that it answers at once."""

import re
from typing import Any

from vla_mini.config.compose import configs_folder, groups_of, read_command
from vla_mini.errors import show
from vla_mini.schema import MISSING

EXAMPLES = {
    "train": [
        "experiment=toy_pick",
        "experiment=toy_pick action=bins optimizer.lr=1e-3 seed=1",
        "experiment=toy_pick trainer.devices=4",
        "env=none data.root=DIR data.episodes=null auxiliary=none",
    ],
    "collect": ["env=toy_pick episodes=2000 output=data/toy_pick", "env=toy_pick episodes=64 output=data/small seed=1"],
    "evaluate": [
        "policy=runs/toy_pick/latest/policy",
        "policy=runs/toy_pick/latest/policy episodes=50 execute=1 ensemble=0.01 output=evaluations/quick",
    ],
    "infer": [
        'policy=DIR image=scene.png instruction="pick up the red cube" state=[0.1,0.2,1.0,0.0]',
        'policy=DIR image=scene.png instruction="lift the blue ball" state=[0,0,1,0] mode=grad',
    ],
    "compare": [
        "action=regression,flow budget.steps=400",
        "optimizer=adam optimizer.lr=1e-3,3e-3 seeds=[0] budget.steps=400 experiment=toy_pick",
        'variants.one="action=flow" variants.two="action=flow optimizer.lr=1e-3" budget.seconds=60',
        "study=words parameters.encoder=DIR",
    ],
    "gradients": [
        "policy=runs/toy_pick/latest/policy",
        "policy=runs/toy_pick/latest/policy data=data/toy_pick output=gradients",
        "experiment=toy_pick vision=patch",
    ],
    "convert": ["policy=runs/old/policy output=runs/old/policy_2", "policy=old output=new"],
    "doctor": ["experiment=toy_pick", "experiment=toy_pick action=flow data.root=data/mine output=checked"],
}
NOTES = {
    "compare": [
        "All other settings are those of scripts/train.py, for every variant; where one has several values, separated by",
        'commas, each makes a variant. Variants that differ in more have names: variants.NAME="arguments of train.py".',
        "",
    ],
}


def help_text(name: str, documentation: str) -> str:
    """The command's purpose, its groups with their variants, its settings with their defaults, examples."""
    usage = f"python scripts/{name}.py"
    lines = [documentation.strip().partition("\n")[0], "", f"usage: {usage} [group=variant] [key=value]"]
    command, groups = read_command(name), groups_of(name)
    chosen = {item for entry in command.pop("defaults", []) if isinstance(entry, dict) for item in entry.items()}
    if any(groups.values()):
        lines += ["", "groups (each configs/<group>/<variant>.yaml; * = default; its keys are set by group.key=value):"]
    for group, variants in groups.items():
        shown = [f"{variant}*" if (group, variant) in chosen else variant for variant in variants]
        lines.append(f"  {group:<12} {'  '.join(shown)}")
    comments = _comments((configs_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    settings = {f"{key}={_value(value)}": comments.get(key, "") for key, value in _leaves(command)}
    width = max(map(len, settings))
    lines += ["", "settings:", *(f"  {setting:<{width}}  {comment}".rstrip() for setting, comment in settings.items()), ""]
    lines += [*NOTES.get(name, []), "examples:", *(f"  {usage} {example}" for example in EXAMPLES[name])]
    return "\n".join([*lines, "", "  --help        this text", "  --cfg job     print the composed config and stop"])


def _comments(text: str) -> dict[str, str]:
    """The comment behind each key of a YAML file of at most two levels, by its dotted key."""
    comments, section = {}, ""
    for indent, key, comment in re.findall(r"^( *)(\w+):[^#\n]*(?:# *(.+))?$", text, flags=re.MULTILINE):
        section = section if indent else key
        comments[f"{section}.{key}" if indent else key] = comment
    return comments


def _leaves(node: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The dotted key and the value of each setting."""
    leaves = []
    for key, value in node.items():
        leaves += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(f"{prefix}{key}", value)]
    return leaves


def _value(value: Any) -> str:
    text = "(required)" if value == MISSING else value if isinstance(value, str) else show(value)
    return text if len(text) <= 40 else "..."
