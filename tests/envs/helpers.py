"""What the tests of simulators share."""

import pytest

from vla_mini.envs.mujoco import import_mujoco


def why_missing(extra: str) -> str:
    """Why the environments of this extra of pyproject.toml cannot be tested here; empty where they can."""
    try:
        import_mujoco(extra=extra)
    except ValueError as error:
        return str(error)
    return ""


def needs(extra: str) -> list[pytest.MarkDecorator]:
    """The marks of tests that need this extra. The simulators' own warnings are none of ours."""
    return [
        pytest.mark.skipif(bool(why_missing(extra)), reason=why_missing(extra)),
        pytest.mark.filterwarnings("ignore::DeprecationWarning"),
        pytest.mark.filterwarnings("ignore:.*symmetric and normalized space"),
    ]
