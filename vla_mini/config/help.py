"""`--help`, read from configs/ alone, without Hydra and torch, so that it answers at once."""

import re
from pathlib import Path
from typing import Any

import yaml

from vla_mini.commands import command_line
from vla_mini.config.compose import dotted
from vla_mini.config.sources import configs_folder, groups_of, read_command, variant_files
from vla_mini.utils.errors import show
from vla_mini.utils.schema import MISSING

FLAGS = "--help: this text; --cfg job: print the composed config and stop; --config-dir DIR: look for variants there, too"


def help_text(name: str, documentation: str) -> str:
    """The first line of a script's docstring, its command's groups with their variants, its settings with their defaults, and
    the rest of the docstring, which holds examples."""
    documentation = re.sub(r"python scripts/(\w+)\.py", lambda match: command_line(match[1]), documentation)
    purpose, _, details = documentation.strip().partition("\n")
    lines = [purpose, "", f"usage: {command_line(name)} [group=variant] [key=value]", ""]
    command, groups = read_command(name), groups_of(name)
    chosen = {item for entry in command.pop("defaults", []) if isinstance(entry, dict) for item in entry.items()}
    if groups:
        lines.append("groups (each configs/<group>/<variant>.yaml; * = default; its keys are set by group.key=value,")
        lines.append(f"and {command_line(name)} --help <group> lists them):")
    for group, variants in groups.items():
        shown = [f"{variant}*" if (group, variant) in chosen else variant for variant in variants]
        lines.append(f"  {group:<12} {'  '.join(shown)}")
    lines += ["", "settings:", *_settings(configs_folder() / f"{name}.yaml", command)]
    return "\n".join([*lines, "", details.strip("\n"), "", FLAGS])


def group_text(group: str) -> str:
    """The settings of each variant of a group, with their defaults and comments."""
    lines = []
    for variant, path in variant_files(group).items():
        node = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        node.pop("defaults", None)
        lines += [f"{group}={variant}", *_settings(path, node, prefix=f"{group}."), ""]
    return "\n".join(lines[:-1])


def _settings(path: Path, node: dict[str, Any], prefix: str = "") -> list[str]:
    """A line for each setting of a YAML file: its key with `prefix`, its value, its comment."""
    comments = _comments(path.read_text(encoding="utf-8"))
    leaves = [(key, value) for key, value in dotted(node) if value == {} or not isinstance(value, dict)]
    settings = {f"{prefix}{key}={_value(value)}": comments.get(key, "") for key, value in leaves}
    width = max(map(len, settings), default=0)
    return [f"  {setting:<{width}}  {comment}".rstrip() for setting, comment in settings.items()]


def _comments(text: str) -> dict[str, str]:
    """The comment behind each key of a YAML file of at most two levels, by its dotted key."""
    comments, section = {}, ""
    for indent, key, comment in re.findall(r"^( *)(\w+):[^#\n]*(?:# *(.+))?$", text, flags=re.MULTILINE):
        section = section if indent else key
        comments[f"{section}.{key}" if indent else key] = comment
    return comments


def _value(value: Any) -> str:
    text = "(required)" if value == MISSING else value if isinstance(value, str) else show(value)
    return text if len(text) <= 40 else "..."
