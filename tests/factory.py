"""Policies and batches for tests, built from configs/ and from the features: no test has shapes of its own."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from omegaconf import OmegaConf

from vla_mini import config, testing
from vla_mini.parts import KINDS
from vla_mini.policy import Policy
from vla_mini.testing import FEATURES, make_batch, make_observation, mean_loss

__all__ = ["FEATURES", "command", "load_script", "make_batch", "make_observation", "make_policy", "mean_loss", "spec"]

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
VARIANTS = {kind: sorted(path.stem for path in (CONFIGS / kind).glob("*.yaml")) for kind in KINDS}
DEFAULTS = {"vision": "conv", "language": "table", "trunk": "query", "action": "regression", "auxiliary": "keyframe"}
OTHERS = [(kind, name) for kind, names in VARIANTS.items() for name in names if name != DEFAULTS[kind]]


def spec(kind: str, name: str) -> dict:
    """The settings in configs/<kind>/<name>.yaml."""
    return OmegaConf.to_container(OmegaConf.load(CONFIGS / kind / f"{name}.yaml"))


def make_policy(**parts) -> Policy:
    """The default policy of configs/ in eval mode, with other `parts`: by name (vision="patch") or as settings."""
    named = {kind: parts.pop(kind, name) for kind, name in DEFAULTS.items()}
    return testing.make_policy(
        **{kind: spec(kind, part) if isinstance(part, str) else part for kind, part in named.items()}, **parts
    )


def load_script(name: str) -> ModuleType:
    """scripts/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(f"scripts_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def command(name: str, *arguments: str) -> int:
    """The exit code of scripts/<name>.py with these arguments, run in this process."""
    return config.run(name, list(arguments), load_script(name).main.__wrapped__)
