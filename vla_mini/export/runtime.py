"""An exported policy, run by onnxruntime: what `Controller` needs of a policy, without its parts.

images  uint8 "b k c h w" ─┐
tokens, mask "b l"        ─┼─ policy.onnx ── actions, raw units "b t a"
state, noise              ─┘
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Generator, Tensor

from vla_mini.parts import ActingDefaults, Language
from vla_mini.types import Observation, check_inputs
from vla_mini.utils import files
from vla_mini.utils.errors import as_value_error
from vla_mini.utils.features import Features

FORMAT = "vla-mini-onnx-1"
FILES = GRAPH, CONFIG, TOKENIZER = "policy.onnx", "policy.json", "tokenizer.json"
MANIFEST = "manifest.json"


class ExportedPolicy:
    """A policy of scripts/export.py. ValueError where onnxruntime is missing, or where a file is missing or altered.

    - threads: of onnxruntime; None: one for each core
    """

    device, takes_prefix = torch.device("cpu"), False
    tokenize, unknown_words = Language.tokenize, Language.unknown_words  # which use its tokenizer alone

    def __init__(self, folder: str | Path, *, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ValueError(f"policy={folder}: the package {error.name} is missing: pip install 'vla-mini[onnx]'") from error
        folder = Path(folder)
        found = files.digests(folder, (path for path in sorted(folder.iterdir()) if path.is_file()))
        files.check_manifest(folder, MANIFEST, found, required=FILES)
        config = files.read_json(folder / CONFIG)
        if config.get("format") != FORMAT:
            raise ValueError(f"{folder / CONFIG}: format {config.get('format')!r} is not {FORMAT!r}")
        lists = {name: tuple(value) if isinstance(value, list) else value for name, value in config["features"].items()}
        self.features, self.horizon, self.history = Features(**lists), config["horizon"], config["history"]
        self.acting, self.source = ActingDefaults(**config["acting"]), config["source"]
        self._letters, self._noise = config["sizes"], config["needs_noise"]
        self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        with as_value_error(f"{folder / GRAPH}", Exception):
            self._session = onnxruntime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])

    def act(
        self, observation: Observation, generator: Generator | Sequence[Generator] | None = None, prefix: None = None
    ) -> Float[Tensor, "b t a"]:
        """A chunk of actions in raw units; the noise is what the policy itself would draw. A graph takes no prefix."""
        check_inputs(observation, Observation, device=self.device, letters=self._letters)
        inputs: dict[str, Any] = {name: tensor.numpy() for name, tensor in observation._asdict().items()}
        if self._noise:
            size = (self.horizon, self.features.action_size)
            inputs["noise"] = draw_noise(len(observation.state), size, generator).numpy()
        (actions,) = self._session.run(["actions"], inputs)
        return torch.from_numpy(actions)

    predict_chunk = act


def draw_noise(number: int, size: tuple[int, int], generator: Generator | Sequence[Generator] | None) -> Float[Tensor, "b t a"]:
    """Standard normal noise for `number` chunks of `size` = (t, a): of one generator, or one each."""
    if isinstance(generator, Sequence):
        return torch.cat([torch.randn((1, *size), generator=each) for each in generator])
    return torch.randn((number, *size), generator=generator)
