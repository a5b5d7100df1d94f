"""What the tests of simulators share."""

from vla_mini.envs.mujoco import import_mujoco


def why_missing(extra: str) -> str:
    """Why the environments of this extra of pyproject.toml cannot be tested here; empty where they can."""
    try:
        import_mujoco(extra=extra)
    except ValueError as error:
        return str(error)
    return ""
