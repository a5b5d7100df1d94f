"""vla-mini: images, an instruction and the robot's state -> a chunk of actions, with every gradient visible and tested.

    policy = vla_mini.Policy.from_pretrained("runs/toy_pick/latest/policy")
    actions = policy.act(observation)

Names are imported when they are first used (PEP 562), so that `import vla_mini` itself loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from vla_mini.acting import Controller
    from vla_mini.policy import Policy
    from vla_mini.types import Batch, Context, Observation
    from vla_mini.utils.features import Features, FeatureStatistics, Statistics

_MODULES = {
    "Batch": "vla_mini.types",
    "Context": "vla_mini.types",
    "Controller": "vla_mini.acting",
    "FeatureStatistics": "vla_mini.utils.features",
    "Features": "vla_mini.utils.features",
    "Observation": "vla_mini.types",
    "Policy": "vla_mini.policy",
    "Statistics": "vla_mini.utils.features",
}

__all__ = [
    "Batch",
    "Context",
    "Controller",
    "FeatureStatistics",
    "Features",
    "Observation",
    "Policy",
    "Statistics",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value  # so that the next look-up costs nothing
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
