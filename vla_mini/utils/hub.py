"""Models of the transformers library: a hub id, a local folder or a config -> an encoder, and its config as a plain dict.

Whatever goes wrong is a ValueError of one line; no code but the library's own is run unless it is trusted; there is no network
access unless a hub id asks for it. What `load` returns can be made again by `make` from its config alone, so that a saved
policy needs neither the hub nor the folder.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vla_mini.utils.download import download
from vla_mini.utils.errors import did_you_mean, one_line

Encoder = Literal["vision", "text"]
# What is downloaded from the hub: no weights but safetensors, none for other libraries, no code.
FILES = ["*.json", "*.txt", "*.model", "model*.safetensors"]
# Where a config came from, which is no part of the model.
ORIGIN_KEYS = {"architectures", "auto_map", "dtype", "transformers_version", "_name_or_path"}
EXPLANATIONS = {  # what the library's errors mean, by a piece of their text
    "trust_remote_code": "it needs code that comes with it, which is run only with trust_remote_code=true",
    "ignore_mismatched_sizes": "its weights do not have the sizes in its config.json",
    "does not recognize this architecture": "transformers has no model of that type",
    "Unrecognized model": "transformers has no model of that type",
}


def make(config: Mapping[str, Any] | None, **defaults: Any) -> tuple[nn.Module, dict[str, Any]]:
    """The untrained encoder of a config, {"model_type": "bert", "hidden_size": 64, ...}, and the whole config with the
    library's defaults. A setting of None is the default, or ignored where the model has no setting of that name."""
    if config is None:
        raise ValueError("path=null, config=null: give a path (a hub id or a folder) or a config")
    import transformers
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel

    arguments = {**defaults, **config}
    kind = arguments.pop("model_type", None)
    with _quiet(), transformers_errors(f"model_type={kind}"):
        known = AutoConfig.for_model(kind).to_dict()
        for name in arguments.keys() - known.keys():
            if arguments.pop(name) is not None:
                raise ValueError(f"there is no setting {name!r}; {did_you_mean(name, known)}")
        whole = AutoConfig.for_model(kind, **arguments)
        if type(whole) in MODEL_MAPPING:
            build = AutoModel.from_config
        else:  # SigLIP's text encoder, for one, has a class that AutoModel does not know
            build = getattr(transformers, f"{type(whole).__name__.removesuffix('Config')}Model")._from_config
        # In bf16 on CPUs, eager attention is three times faster than the fused one, forward and backward.
        model = build(whole, attn_implementation="eager")
        return model.get_encoder() if whole.is_encoder_decoder else model, _plain(whole)


def load(folder: Path, *, part: Encoder, trust_remote_code: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """The pretrained encoder in `folder`, in fp32 and trainable, and the config that it can be made again from; the config of
    a model that needs code of its own has an `auto_map`.

    Of a model with a vision and a text encoder (CLIP, SigLIP) it is the `part`; of an encoder with a decoder (T5), the encoder.
    """
    from transformers import AutoConfig, AutoModel

    with _quiet(), transformers_errors(f"path={folder}"):
        whole, report = AutoModel.from_pretrained(
            folder, trust_remote_code=trust_remote_code, dtype=torch.float32, output_loading_info=True
        )
        # Poolers are often left out, and not used here.
        if missing := sorted(name for name in report["missing_keys"] if "pooler" not in name):
            raise ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} more: are they another model's?")
        model, config = whole, whole.config
        inner = getattr(config, f"{part}_config", None)
        if inner is not None:
            model, config = next((each, inner) for each in whole.modules() if getattr(each, "config", None) is inner)
        if trust_remote_code and getattr(config, "auto_map", None):
            return model.train(), _plain(config) | {"auto_map": config.auto_map}
        known = AutoConfig.for_model(config.model_type).to_dict()  # old files hold settings that are gone
        again, plain = make({key: value for key, value in _plain(config).items() if key in known})
        again.load_state_dict((model.get_encoder() if config.is_encoder_decoder else model).state_dict())
        return again, plain


def make_again(config: Mapping[str, Any], *, part: Encoder, settings: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The encoder of a saved policy: from its `config` alone, unless it needs code from the `path` of its settings."""
    if "auto_map" not in config:
        return make(config)
    path, trust = settings["path"], settings["trust_remote_code"]  # which the user confirmed (pretrained.py)
    return load(fetch(path, trust_remote_code=trust), part=part, trust_remote_code=trust)


def saved_settings(settings: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a model with this `config`, which is saved beside them, without where it came from."""
    own_config = {"config": None} if settings["path"] else {}
    return {**settings, **own_config, **({} if "auto_map" in config else {"path": None, "trust_remote_code": False})}


def fetch(path: str | Path, *, trust_remote_code: bool = False, files: Sequence[str] = FILES, setting: str = "path") -> Path:
    """The local folder `path`, or the one that a hub id's `files` are downloaded to. ValueError where there is none; it begins
    with the `setting` that the user gave it as."""
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"{setting}={path}: the folder holds no model: there is no config.json in it")
        return Path(path)
    return download(str(path), [*files, "*.py"] if trust_remote_code else files, kind="model", setting=setting)


def freeze_unused(model: nn.Module, output: Tensor) -> None:
    """Freeze the parameters that `output` does not depend on (poolers, mask tokens)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


@contextmanager
def transformers_errors(prefix: str) -> Iterator[None]:
    """Turn whatever the library raises into a ValueError of one line."""
    try:
        yield
    except Exception as error:
        text = one_line(error)
        text = next((meaning for piece, meaning in EXPLANATIONS.items() if piece in text), text[:300])
        raise ValueError(f"{prefix}: {text}") from error


def _plain(config: Any) -> dict[str, Any]:
    """A config of transformers as JSON can hold it, the model's own defaults included, without where it came from.

    Defaults that all models share are left out: they change nothing, and differ between versions of the library.
    """
    from transformers import PretrainedConfig

    shared = json.loads(PretrainedConfig().to_json_string(use_diff=False))
    whole = json.loads(config.to_json_string(use_diff=False))
    return {
        key: value for key, value in whole.items() if key not in ORIGIN_KEYS and not (key in shared and shared[key] == value)
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars, warnings and reports about every weight."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
