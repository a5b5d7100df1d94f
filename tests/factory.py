"""Policies and batches for tests, derived from the configs and from the features: no test invents shapes of its own."""

import importlib.util
import sys
from pathlib import Path

from omegaconf import OmegaConf

from vla_mini import config, testing
from vla_mini.policy import Policy
from vla_mini.testing import FEATURES, make_batch, make_observation, mean_loss

__all__ = ["FEATURES", "command", "make_batch", "make_observation", "make_policy", "mean_loss", "spec"]

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
GROUPS = ("vision", "language", "trunk", "action", "auxiliary")
VARIANTS = {group: sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")) for group in GROUPS}
DEFAULTS = {"vision": "conv", "language": "table", "trunk": "query", "action": "regression", "auxiliary": "keyframe"}
OTHERS = [(group, name) for group, names in VARIANTS.items() for name in names if name != DEFAULTS[group]]


def spec(group: str, name: str) -> dict:
    """What configs/<group>/<name>.yaml says."""
    return OmegaConf.to_container(OmegaConf.load(CONFIGS / group / f"{name}.yaml"))


def make_policy(**parts) -> Policy:
    """The default policy of configs/ with other `parts`, by name (vision="patch") or as a spec, in eval mode."""
    named = {group: parts.pop(group, name) for group, name in DEFAULTS.items()}
    return testing.make_policy(
        **{group: spec(group, part) if isinstance(part, str) else part for group, part in named.items()}, **parts
    )


def command(name: str, *arguments: str) -> int:
    """Runs scripts/<name>.py with these arguments in this process; its exit code."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return config.run(name, list(arguments), module.main.__wrapped__)
