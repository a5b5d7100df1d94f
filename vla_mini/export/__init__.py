"""A saved policy as an ONNX file that runs without torch's weights, in onnxruntime: written by onnx.py, run by runtime.py."""

from pathlib import Path
from typing import Any

from vla_mini.export.runtime import CONFIG, GRAPH, ExportedPolicy
from vla_mini.policy import Policy


def load_policy(
    source: str | Path, *, num_steps: int | None = None, trust_remote_code: bool = False
) -> Policy | ExportedPolicy:
    """The policy that `save_pretrained` or scripts/export.py wrote.

    - num_steps: of heads that sample; None: as saved. Those of an exported policy are in its graph

    Raises ValueError as `Policy.from_pretrained`, and where `num_steps` cannot be changed.
    """
    if any((Path(source) / name).is_file() for name in (GRAPH, CONFIG)):
        if num_steps is not None:
            raise ValueError(f"num_steps={num_steps}: those of an exported policy are fixed; export {source} again with others")
        return ExportedPolicy(source)
    policy: Any = Policy.from_pretrained(source, trust_remote_code=trust_remote_code)
    if num_steps is not None:
        policy.action.change(num_steps=num_steps)
    return policy
