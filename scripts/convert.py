"""Convert a policy that vla-mini 0.1 saved to today's format. It has the same weights, bit for bit, and acts the same.

Settings, weights and assets have other names today; nothing else differs. The keyframe loss, which only training uses, has more
parameters today, of which the new ones are zero.

    python scripts/convert.py policy=runs/old/policy output=runs/old/policy_2
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_mini import config as commands
from vla_mini.utils import files

if TYPE_CHECKING:
    from torch import Tensor

    from vla_mini.config.command_settings import ConvertSettings

# Weights: pattern of an old name -> new name, applied one after the other.
WEIGHTS = {
    r"^normalization\.action_centre$": "normalization.action_offset",
    r"^normalization\.action_reach$": "normalization.action_scale",
    r"^camera\.": "camera_embedding.",
    r"^auxiliary\.log_deviation$": "auxiliary.log_std",
    r"^auxiliary\.": "auxiliary.keyframe.",
    r"(blocks\.\d+)\.merge\.": r"\1.output_projection.",
    r"(blocks\.\d+)\.perceptron\.": r"\1.mlp.",
    r"^(vision|trunk|action)\.place\b": r"\1.positional_embedding",
    r"^(trunk|action)\.kinds$": r"\1.type_embedding",
    r"^action\.embed\.": "action.token_embedding.",
    r"^action\.((?:field\.|denoiser\.)?)enter\.": r"action.\1input_projection.",
    r"^action\.((?:field\.|denoiser\.)?)leave\.": r"action.\1output_projection.",
    r"^action\.(field|denoiser)\.read\.": r"action.\1.context_mlp.",
    r"^action\.(field|denoiser)\.time\.": r"action.\1.time_mlp.",
    r"^action\.(field|denoiser)\.modulate\.": r"action.\1.adaptive_norm.",
}
SETTINGS = {"draws": "noise_samples", "levels": "num_train_timesteps"}
INPUTS = {"words": "instruction"}


def convert(old: Path, new: Path, *, trust_remote_code: bool) -> None:
    """Write the policy in the folder `old` to the folder `new`. ValueError, naming the file, where one is damaged, and where
    the new policy cannot be loaded."""
    from safetensors.torch import load_file, save_file

    from vla_mini import Policy

    found = files.digests(old, (path for path in sorted(old.iterdir()) if path.is_file()))
    files.check_manifest(old, "manifest.json", found, required=("config.json", "model.safetensors"))
    config = files.read_json(old / "config.json")
    if config["format"] != "vla-mini-1":
        raise ValueError(f"policy={old}: its format is {config['format']!r}; only 'vla-mini-1' is converted")
    weights = {_renamed(name): tensor for name, tensor in load_file(old / "model.safetensors").items()}
    auxiliary = config["parts"].pop("auxiliary")
    parts = {
        name: part and {SETTINGS.get(key, key): value for key, value in part.items()} for name, part in config["parts"].items()
    }
    parts["auxiliary"] = {}
    if auxiliary is not None:
        actions = config["features"]["action"]
        closes = "close" if "close" in actions else actions[-1]
        parts["auxiliary"]["keyframe"] = auxiliary | {"state": config["keyframe"], "closes": closes}
        weights |= _keyframe_weights(config, weights)
        del weights["auxiliary.keyframe.log_std"]
    lora = config.get("lora")
    new_config = {
        "format": "vla-mini-2",
        "parts": parts,
        "features": config["features"],
        "horizon": config["horizon"],
        "history": config.get("history", 1),
        "acting": {"execute": config["execute"], "ensemble": config.get("ensemble")},
        "ablate": [INPUTS.get(name, name) for name in config.get("blind", ())],
        "source": config["source"],
        "lora": lora and lora | {"layers": [_renamed(f"{layer}.")[:-1] for layer in lora["layers"]], "save": "separate"},
    }
    with files.replacing_folder(new) as folder:
        files.write_json(folder / "config.json", new_config)
        save_file(weights, folder / "model.safetensors")
        if lora:
            adapters = load_file(old / "adapters.safetensors")
            save_file({_renamed(name): tensor for name, tensor in adapters.items()}, folder / "adapters.safetensors")
        for name in ("tokenizer.json", "action_tokenizer.json"):
            if (old / name).is_file():
                (folder / name).write_bytes((old / name).read_bytes())
        _write_model_configs(folder, config["parts"])
        files.write_manifest(folder, "manifest.json", files.digests(folder, sorted(folder.iterdir())))
        try:
            Policy.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except ValueError as error:  # in a folder that the user does not know
            raise ValueError(str(error).replace(str(folder), str(old))) from error


def _renamed(name: str) -> str:
    for pattern, replacement in WEIGHTS.items():
        name = re.sub(pattern, replacement, name)
    return name


def _keyframe_weights(config: Mapping[str, Any], weights: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """The keyframe loss has statistics of its own today, those of the state features that it is about. Its calibration was
    affine, and its Gaussians had one standard deviation in all directions."""
    import torch

    index = torch.tensor([config["features"]["state"].index(name) for name in config["keyframe"]])
    new = {f"keyframe_{name}": weights[f"normalization.state_{name}"][index] for name in ("mean", "std")}
    new["calibration.weight"] = torch.nn.functional.pad(weights["auxiliary.keyframe.calibration.weight"], (0, 3))
    new["log_scale"] = -weights["auxiliary.keyframe.log_std"].expand(len(index)).clone()
    new["shear"] = torch.zeros(len(index) * (len(index) - 1) // 2)
    return {f"auxiliary.keyframe.{name}": tensor for name, tensor in new.items()}


def _write_model_configs(folder: Path, parts: Mapping[str, Any]) -> None:
    """The configs of transformers' models were settings, and are files of their own today."""
    vision, language = parts["vision"], parts["language"]
    if vision["_target_"].endswith("HuggingFaceVision"):
        processor = {"size": None, "image_mean": vision["image_mean"], "image_std": vision["image_std"]}
        files.write_json(folder / "vision_model.json", {"config": vision["config"], "processor": processor})
    if language["_target_"].endswith("HuggingFaceLanguage"):
        files.write_json(folder / "language_model.json", language["config"])


@commands.main("convert")
def main(settings: "ConvertSettings") -> None:
    old, output = Path(settings.policy), Path(settings.output)
    if not old.is_dir():
        raise ValueError(f"policy={old}: there is no such folder")
    if output.exists():
        raise ValueError(f"output={output} exists already: name a new folder")
    convert(old, output, trust_remote_code=settings.trust_remote_code)
    print(output)


if __name__ == "__main__":
    main()
