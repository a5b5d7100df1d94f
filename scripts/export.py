"""Export a saved policy to ONNX: from images, words and state to actions in raw units, for onnxruntime.

The new folder `output` holds policy.onnx, policy.json, tokenizer.json and their checksums. It is a policy for evaluate.py,
infer.py and serve.py (`pip install 'vla-mini[onnx]'`). The actions are compared with the policy's before it is written.

    python scripts/export.py policy=runs/toy_pick/latest/policy output=exported
    python scripts/export.py policy=runs/toy_pick/latest/policy output=exported_int8 dtype=int8
    python scripts/evaluate.py policy=exported
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from vla_mini import config

if TYPE_CHECKING:
    from vla_mini.config.command_settings import ExportSettings


@config.main("export")
def main(settings: "ExportSettings") -> None:
    from vla_mini.export import ExportedPolicy, load_policy
    from vla_mini.export.onnx import export

    for package in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(package) is None:
            raise ValueError(f"the package {package} is missing: pip install 'vla-mini[onnx]'")
    options = {"num_steps": settings.num_steps, "trust_remote_code": settings.trust_remote_code}
    policy = load_policy(settings.policy, **options)
    if isinstance(policy, ExportedPolicy):
        raise ValueError(f"policy={settings.policy} is an exported policy already: give the one that it was made of")
    written = export(policy, settings.output, dtype=settings.dtype)
    print(f"{settings.output}: {written.megabytes:.2f} MB; largest difference from the policy's actions {written.error:.2g}")


if __name__ == "__main__":
    main()
