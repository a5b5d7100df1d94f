"""Models of the transformers library: a hub id, a local folder or a config in, an encoder (and its config as a plain dict) out.

One clear line for whatever goes wrong, no code but the library's own unless it is trusted, no network unless a hub id asks for
it. What `load` found can be made again by `make` from its config alone: so a saved policy needs neither hub nor folder.
"""

import json
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

Part = Literal["vision", "text"]
# What is fetched from the hub: no weights but safetensors, none for other libraries, no code.
FILES = ["*.json", "*.txt", "*.model", "model*.safetensors"]
# What a config says about the file that it came from.
_ORIGIN = {"architectures", "auto_map", "dtype", "transformers_version", "_name_or_path"}


def make(config: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The untrained encoder that `config` describes, {"model_type": "bert", "hidden_size": 64, ...}, and the whole config with
    the library's defaults. None stands for such a default where the model has no setting of that name."""
    import transformers
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel

    arguments = dict(config)
    kind = arguments.pop("model_type", None)
    with _quietly(), explained(f"model_type={kind}"):
        known = AutoConfig.for_model(kind).to_dict()
        for name in arguments.keys() - known.keys():
            if arguments.pop(name) is None:
                continue
            close = get_close_matches(name, known, n=1)
            raise ValueError(f"there is no setting {name!r}" + "".join(f"; did you mean {match!r}?" for match in close))
        whole = AutoConfig.for_model(kind, **arguments)
        if type(whole) in MODEL_MAPPING:
            build = AutoModel.from_config
        else:  # SigLIP's text encoder, for one, has a class that AutoModel does not know
            build = getattr(transformers, f"{type(whole).__name__.removesuffix('Config')}Model")._from_config
        # In bf16 on CPUs, attention written out is three times faster than the fused one, forward and back.
        model = build(whole, attn_implementation="eager")
        return model.get_encoder() if whole.is_encoder_decoder else model, _plain(whole)


def load(folder: Path, *, part: Part, trust_remote_code: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """The pretrained encoder in `folder`, in fp32 and ready to learn, and the config that it can be made again from; of one
    that is made by code that comes with it, the config says so by its `auto_map`.

    Of a model with a vision and a text encoder (CLIP, SigLIP) it is the one that `part` names; of an encoder with a decoder
    (T5), the encoder.
    """
    from transformers import AutoConfig, AutoModel

    with _quietly(), explained(f"path={folder}"):
        whole, report = AutoModel.from_pretrained(
            folder, trust_remote_code=trust_remote_code, dtype=torch.float32, output_loading_info=True
        )
        # Poolers are often left out, and used by none of our encoders.
        if missing := sorted(name for name in report["missing_keys"] if "pooler" not in name):
            raise ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} more: are they another model's?")
        model, config = whole, whole.config
        inner = getattr(config, f"{part}_config", None)
        if inner is not None:
            model, config = next((each, inner) for each in whole.modules() if getattr(each, "config", None) is inner)
        if trust_remote_code and getattr(config, "auto_map", None):
            return model.train(), _plain(config) | {"auto_map": config.auto_map}
        known = AutoConfig.for_model(config.model_type).to_dict()  # old files hold settings of long ago
        again, described = make({key: value for key, value in _plain(config).items() if key in known})
        again.load_state_dict((model.get_encoder() if config.is_encoder_decoder else model).state_dict())
        return again, described


def fetch(path: str | Path, *, trust_remote_code: bool = False, files: Sequence[str] = FILES, setting: str = "path") -> Path:
    """The local folder that `path` names, or that a hub id's `files` were downloaded to. ValueError where there is none; it
    begins with the `setting` that the user gave it as."""
    if Path(path).is_dir():
        if not (Path(path) / "config.json").is_file():
            raise ValueError(f"{setting}={path}: the folder is no model: it holds no config.json")
        return Path(path)
    if not is_hub_id(path):
        raise ValueError(f"{setting}={path}: there is no such folder, and it is no hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    online = answers()
    patterns = [*files, "*.py"] if trust_remote_code else list(files)
    try:
        return Path(snapshot_download(str(path), allow_patterns=patterns, local_files_only=not online))
    except RepositoryNotFoundError:
        why = "the hub has no such model, or it is private"
        raise ValueError(f"{setting}={path}: there is no such folder, and {why}") from None
    except (OSError, ValueError) as error:  # the hub's own errors are of these kinds
        why = f"the hub failed ({' '.join(str(error).split())[:200]})" if online else "the hub cannot be reached"
        why += ", and its files are not in the hub's cache"
        raise ValueError(f"{setting}={path}: there is no such folder, {why}") from error


def is_hub_id(path: str | Path) -> bool:
    """Whether `path` has the form owner/name, without such a folder `owner` here: a mistyped path is no stranger's model."""
    owner, slash, name = str(path).partition("/")
    return bool(slash and name) and "/" not in name and owner[:1].isalnum() and not Path(owner).exists()


def answers() -> bool:
    """Whether the hub does, by one short question: its own client would try for half a minute where there is no network."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = constants.ENDPOINT
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:  # an answer, too
        return True
    except OSError:
        return False
    return True


def freeze_unused(model: nn.Module, output: Tensor) -> None:
    """Parameters that `output` does not depend on (poolers, mask tokens) can learn nothing: they no longer ask to."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(output.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def _plain(config: Any) -> dict[str, Any]:
    """A config of transformers as what JSON can hold, the model's own defaults included, without where it came from.

    Left out are defaults that all models share: they change nothing, and come and go with the library's versions.
    """
    from transformers import PretrainedConfig

    shared = json.loads(PretrainedConfig().to_json_string(use_diff=False))
    whole = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in whole.items() if key not in _ORIGIN and not (key in shared and shared[key] == value)}


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Whatever the library raises, as a ValueError of one line."""
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            text = "it needs code that comes with it, which is run only with trust_remote_code=true"
        elif "ignore_mismatched_sizes" in text:
            text = "its weights do not have the sizes that its config.json says"
        elif "does not recognize this architecture" in text or "Unrecognized model" in text:
            text = "transformers knows no model of that type"
        raise ValueError(f"{what}: {text[:300]}") from error


@contextmanager
def _quietly() -> Iterator[None]:
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
