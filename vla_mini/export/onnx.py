"""Policy -> ONNX file: from bytes of images to actions in raw units, with normalisation and all sampling steps in its graph.

Noise is an input, so that the same noise gives the same actions as in torch. Images have the policy's own size, to which
`acting.observe` brings them.
"""

import copy
import logging
import math
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Generator, Tensor, nn

from vla_mini.export.runtime import CONFIG, FORMAT, GRAPH, MANIFEST, TOKENIZER, ExportedPolicy, draw_noise
from vla_mini.policy import Policy
from vla_mini.types import Observation
from vla_mini.utils import files
from vla_mini.utils.errors import as_value_error

TOLERANCE = 1e-4  # of an fp32 graph's actions, in normalised units
OBSERVATIONS = 100  # with which the graph is compared with the policy
Dtype = Literal["fp32", "fp16", "int8"]


class Exported(NamedTuple):
    """What was written.

    - error: the largest difference from the policy's actions in normalised units, over OBSERVATIONS
    """

    megabytes: float
    error: float


class Graph(nn.Module):
    """The policy as one function of tensors: to actions and, of a trunk that has attention maps, to these maps."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self,
        images: UInt8[Tensor, "b k c h w"],
        tokens: Int64[Tensor, "b l"],
        token_mask: Bool[Tensor, "b l"],
        state: Float[Tensor, "b s"],
        noise: Float[Tensor, "b t a"] | None = None,
    ) -> tuple[Tensor, ...]:  # "b t a", and "b q n" where there are maps
        images, words, mask, state = self.policy.prepare(Observation(images, tokens, token_mask, state))
        # As in `Policy.predict`, but the context is kept.
        context, units = self.policy.context(images, words, state, mask), self.policy.normalization
        actions = units.unnormalize_action(self.policy.action.predict(context, noise), state)
        return (actions, context.attention.exp()) if self.policy.trunk.num_queries else (actions,)


def export(policy: Policy, output: str | Path, *, dtype: Dtype = "fp32") -> Exported:
    """Write policy.onnx, policy.json, tokenizer.json and manifest.json to the new folder `output`.

    - dtype: of the weights: fp16 halves the file; int8 quantises the weights of matrix products, not of convolutions and tables

    Raises ValueError for a policy that no graph can be made of, and where the graph's actions are not the policy's.
    """
    output = Path(output)
    if not policy.action.exportable:
        name = type(policy.action).__module__.rpartition(".")[2]
        raise ValueError(f"action={name} cannot be exported: it calls its layers as often as their values demand")
    if output.exists():
        raise ValueError(f"output={output} exists already: name a new folder")
    policy = copy.deepcopy(policy).cpu().float().eval()
    if policy.lora is not None:
        raise ValueError("a policy with separate adapters cannot be exported: train it with lora.save=merged")
    observation = random_observations(policy, 3)
    with files.replacing_folder(output) as folder:
        _write_graph(policy, observation, folder / GRAPH)
        _convert(folder / GRAPH, dtype)
        policy.language.tokenizer.save(str(folder / TOKENIZER))
        files.write_json(folder / CONFIG, describe(policy, dtype))
        files.write_manifest(folder, MANIFEST, files.digests(folder, sorted(folder.iterdir())))
        error = largest_error(policy, ExportedPolicy(folder))
        if not math.isfinite(error) or (dtype == "fp32" and error >= TOLERANCE):
            raise ValueError(f"the exported graph's actions differ from the policy's by {error:.2g} in normalised units")
        return Exported((folder / GRAPH).stat().st_size / 1e6, error)


def describe(policy: Policy, dtype: Dtype) -> dict[str, Any]:
    """The content of policy.json."""
    return {
        "format": FORMAT,
        "dtype": dtype,
        "features": policy.features._asdict(),
        "horizon": policy.horizon,
        "history": policy.history,
        "acting": policy.acting._asdict(),
        "needs_noise": policy.action.needs_noise,
        "sizes": policy.letters,
        "source": policy.source,
    }


def random_observations(policy: Policy, number: int, *, seed: int = 0) -> Observation:
    """Noise as images, states as far apart as in the data, sentences of words that the policy knows."""
    generator = torch.Generator().manual_seed(seed)
    sizes, units = policy.letters, policy.normalization
    shape = [number, *(size if isinstance(size, int) else len(size) for size in (sizes[letter] for letter in "kchw"))]
    words = sorted(policy.language.tokenizer.get_vocab())
    chosen = torch.randint(len(words), (number, 6), generator=generator)
    sentences = [" ".join(words[index] for index in row[: 1 + i % 6]) for i, row in enumerate(chosen)]
    state = units.state_mean + units.state_std * torch.randn(number, len(units.state_mean), generator=generator)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Observation(images, *policy.tokenize(sentences), state)


def largest_error(policy: Policy, exported: ExportedPolicy) -> float:
    """Over OBSERVATIONS, with the same noise, in normalised units."""
    observation = random_observations(policy, OBSERVATIONS, seed=1)
    expected, found = (each.act(observation, Generator().manual_seed(2)) for each in (policy, exported))
    scale = policy.normalization.action_scale
    return float(((found - expected).abs() / scale.where(scale > 0, 1)).max())


def _write_graph(policy: Policy, observation: Observation, path: Path) -> None:
    noise = None
    if policy.action.needs_noise:
        noise = draw_noise(len(observation.state), (policy.horizon, policy.features.action_size), Generator().manual_seed(0))
    batch, words = torch.export.Dim("b", min=1, max=1 << 16), torch.export.Dim("l", min=1, max=1 << 12)
    inputs = {**observation._asdict()} | ({"noise": noise} if noise is not None else {})
    shapes = {name: {0: batch, 1: words} if name.startswith("token") else {0: batch} for name in inputs}
    quiet = warnings.catch_warnings(action="ignore")  # of the exporter, about its own names and versions
    with quiet, torch.no_grad(), as_value_error("the policy cannot be exported", Exception):
        program = torch.onnx.export(
            Graph(policy),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=[*inputs],
            output_names=["actions", "attention"] if policy.trunk.num_queries else ["actions"],
            external_data=False,
            verbose=False,
        )
        program.save(path)


def _convert(path: Path, dtype: Dtype) -> None:
    """Change the weights of an fp32 graph."""
    if dtype == "int8":
        from onnxruntime.quantization import quantize_dynamic

        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # which recommends a program of its own
        try:
            quantize_dynamic(path, path)
        finally:
            logging.disable(before)
    elif dtype == "fp16":
        import onnx
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)
