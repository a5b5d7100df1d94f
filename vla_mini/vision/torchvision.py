"""A classification network of torchvision, up to a feature map of the wanted stride: images "b c h w" in [0, 1] -> one token
for each cell of the map, row by row, "b n width"."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import PositiveInt
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.ops import FrozenBatchNorm2d

from vla_mini.parts import FitData, ObservationSpec, Vision
from vla_mini.utils.errors import as_value_error, did_you_mean
from vla_mini.utils.layers import resize, resolve_input_size

TENSORFLOW_WEIGHTS = {"googlenet", "inception_v3"}
TRANSFORMERS = ("vit", "swin")  # networks whose layers give tokens, or maps with the channels last, instead of maps


class TorchvisionVision(Vision):
    """A classification network without the layers that come after a map of `image size / stride` cells.

    No layer may compute across the batch, or gradients of micro-batches would not add up to those of the big batch: so batch
    norms are frozen at the statistics of pretrained weights (`frozen`, as in ACT), or replaced by group norms (`group`, as in
    Diffusion Policy, for untrained ones).

    - name: resnet18, convnext_tiny, efficientnet_b0 ...: any classification network of torchvision.models except ViT and
      Swin, whose layers give other things than maps "b c h w"
    - path: a file with the whole network's state_dict, as safetensors or by torch.save. None: untrained
    - stride: pixels between tokens; the deepest map of that stride is taken
    - layer: the map of this module or graph node instead (layer2, features.3)
    - input_size: [height, width] that images are resized to. None: the dataset's size
    - norm: frozen or group. None: frozen with a path, else group
    """

    def __init__(
        self,
        spec: ObservationSpec,
        *,
        name: str = "resnet18",
        path: str | None = None,
        stride: PositiveInt = 8,
        layer: str | None = None,
        input_size: list[int] | None = None,
        norm: Literal["frozen", "group"] | None = None,
    ):
        super().__init__()
        self.input_size = resolve_input_size(input_size, spec.image_size)
        mean, std = image_statistics(name)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def fit(self, data: FitData) -> None:
        self._build(self.settings["path"])

    def load_assets(self, folder: Path) -> None:
        self._build(None)  # the weights are the saved policy's

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        images = resize(images, self.input_size)
        return rearrange(self.network((images - self.mean) / self.std)["map"], "b c h w -> b (h w) c")

    def _build(self, path: str | None) -> None:
        settings = self.settings
        norm = settings["norm"] or ("frozen" if settings["path"] else "group")
        with warnings.catch_warnings(action="ignore"):  # about initial values, and nodes that exist in training only
            network = models.get_model(settings["name"], weights=None)
            if path is not None:
                _load(network, path)
            _replace_norms(network, norm)
            node, self.width, self.grid = _find_map(network, self.input_size, settings["stride"], settings["layer"])
            self.network = create_feature_extractor(network, {node: "map"})
        self.settings = settings | {"path": None, "norm": norm}  # what is saved: the weights are the policy's


def image_statistics(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of red, green and blue in the images that torchvision's weights of network `name` were trained on.

    Raises ValueError for a name that is not one of the classification networks, or is a transformer.
    """
    names = models.list_models(module=models)
    if name not in names:
        raise ValueError(f"name={name!r} is not a classification network of torchvision; {did_you_mean(name, names)}")
    if name.startswith(TRANSFORMERS):
        raise ValueError(f"name={name!r} is a transformer without maps (b c h w): use vision=huggingface")
    if name in TENSORFLOW_WEIGHTS:  # torchvision's network itself would convert from ImageNet's (`transform_input`)
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    preset = models.get_model_weights(name).DEFAULT.transforms()
    return preset.mean, preset.std


def _load(network: nn.Module, path: str) -> None:
    """Read the weights in the file `path`, and no other objects that it may hold."""
    if not Path(path).is_file():
        raise ValueError(f"path={path}: there is no such file of weights")
    with as_value_error(f"path={path} holds no state_dict of {type(network).__name__}"):  # whatever a wrong file leads to
        weights = load_file(path) if path.endswith(".safetensors") else torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(weights)


def _replace_norms(module: nn.Module, norm: str) -> None:
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            _replace_norms(child, norm)
            continue
        channels = child.num_features
        new = FrozenBatchNorm2d(channels, eps=child.eps) if norm == "frozen" else nn.GroupNorm(math.gcd(channels, 16), channels)
        if norm == "frozen":
            new.load_state_dict(child.state_dict())
        setattr(module, name, new)


def _find_map(network: nn.Module, size: list[int], stride: int, layer: str | None) -> tuple[str, int, tuple[int, int]]:
    """The graph node of `layer`, or of the deepest map of that stride; its channels and its grid."""
    nodes = get_graph_node_names(network)[1][1:]  # without the input
    parts = {".".join(node.split(".")[:depth]) for node in nodes for depth in range(1, node.count(".") + 2)}
    if layer is not None and layer not in parts:
        raise ValueError(f"layer={layer!r} is not in the network; {did_you_mean(layer, sorted(parts))}")
    extractor = create_feature_extractor(network, [layer] if layer else nodes).eval()
    with as_value_error(f"input_size={size} does not suit this network", AssertionError, RuntimeError), torch.no_grad():
        found = extractor(torch.zeros(1, 3, *size))
    maps = {node: value.shape for node, value in found.items() if isinstance(value, Tensor) and value.ndim == 4}
    # Pixels between cells, down and across. Maps whose channels come last (inside ConvNeXt's blocks) have no such stride.
    strides = {node: [side / cells for side, cells in zip(size, shape[2:], strict=True)] for node, shape in maps.items()}
    maps = {node: shape for node, shape in maps.items() if max(strides[node]) < 2 * min(strides[node])}
    wanted = [{side // stride, math.ceil(side / stride)} for side in size]  # networks round differently
    for node, shape in reversed(maps.items()):
        if layer or all(cells in fitting for cells, fitting in zip(shape[2:], wanted, strict=True)):
            return node, shape[1], tuple(shape[2:])
    if layer:
        raise ValueError(f"layer={layer!r} does not give a map (b c h w)")
    raise ValueError(
        f"stride={stride}: for input_size={size} the network has no maps (b c h w) of that stride; choose from "
        f"{sorted({round(strides[node][0]) for node in maps})}"
    )
