"""What the tests of the playground share."""

import base64

from tests.factory import ROOT
from vla_mini.envs.toy_pick.environment import ToyPick

PAGE = ROOT / "docs" / "playground"
TIMEOUT = 120_000  # milliseconds; only a page that hangs takes that long


def exported_scene(env: ToyPick) -> dict:
    """A scene of Python's for `new Scene` of scene.js; its table in base64."""
    return {
        "objects": [item._asdict() for item in env.scene.objects],
        "gripper": list(env.scene.gripper),
        "instruction": env.instruction,
        "table": base64.b64encode(env._table.tobytes()).decode(),
    }
