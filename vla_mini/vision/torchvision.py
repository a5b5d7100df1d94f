"""A classification network of torchvision, up to a feature map of the wanted stride: images `b c h w` in [0, 1] -> one token
for each cell of the map, row by row, `b n width`."""

import math
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from pickle import UnpicklingError
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.ops import FrozenBatchNorm2d

from vla_mini.layers import resize, size_to_see

FROM_TENSORFLOW = {"googlenet", "inception_v3"}
OF_TOKENS = ("vit", "swin")  # networks whose layers hand on no maps, but tokens or maps with the channels last


class TorchvisionVision(nn.Module):
    """What is left of a network that classifies, when all that comes after a map of `image size / stride` cells is cut off.

    No layer may look across the batch, or gradients of micro-batches would not add up to those of the big one: so batch
    norms keep the statistics that they came with (`frozen`, as in ACT, for pretrained weights), or make way for group norms
    (`group`, as in Diffusion Policy, for untrained ones).

    - name: resnet18, convnext_tiny, efficientnet_b0 ...: any of torchvision.models that classifies, but ViT and Swin, whose
      layers hand on other things than maps `b c h w`
    - path: a file with the whole network's state_dict, as safetensors or by torch.save. None: untrained
    - stride: pixels between tokens; the deepest map of that stride is taken, or
    - layer: the one that this part of the network, or node of its graph, gives (layer2, features.3)
    - input_size: [height, width] that images are resized to. None: as they come
    - norm: frozen or group. None: frozen with a path, else group
    """

    def __init__(
        self,
        *,
        image_size: tuple[int, int],
        name: str = "resnet18",
        path: str | None = None,
        stride: int = 8,
        layer: str | None = None,
        input_size: list[int] | None = None,
        norm: Literal["frozen", "group"] | None = None,
    ):
        super().__init__()
        self.name, self.layer, self.stride = name, layer, stride
        self.path = None  # what was read there is saved with the policy
        self.norm = norm or ("frozen" if path else "group")
        self.input_size = size_to_see(input_size, image_size)
        with warnings.catch_warnings(action="ignore"):  # of initial values, of nodes that exist in training only
            network = _make(name)
            if path is not None:
                _load(network, path)
            _replace_norms(network, self.norm)
            node, self.width, self.grid = _find_map(network, self.input_size, stride, layer)
            self.network = create_feature_extractor(network, {node: "map"})
        mean, std = normalisation(name)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        images = resize(images, self.input_size)
        return rearrange(self.network((images - self.mean) / self.std)["map"], "b c h w -> b (h w) c")


def normalisation(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation, for each of red, green and blue, of the images that torchvision's weights of that name expect."""
    if name in FROM_TENSORFLOW:  # to which torchvision's network itself would turn ImageNet's (`transform_input`)
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    preset = models.get_model_weights(name).DEFAULT.transforms()
    return preset.mean, preset.std


def _make(name: str) -> nn.Module:
    names = models.list_models(module=models)
    if name not in names:
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(names)}"
        raise ValueError(f"name={name!r} is no classification network of torchvision; {hint}")
    if name.startswith(OF_TOKENS):
        raise ValueError(f"name={name!r} is a transformer, which makes no maps (b c h w): vision=huggingface takes such")
    return models.get_model(name, weights=None)


def _load(network: nn.Module, path: str) -> None:
    """The weights in the file `path`, and nothing else that could be in it."""
    if not Path(path).is_file():
        raise ValueError(f"path={path}: there is no such file of weights")
    try:
        weights = load_file(path) if path.endswith(".safetensors") else torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"path={path} holds no state_dict of {type(network).__name__}: {reason}") from error


def _replace_norms(module: nn.Module, norm: str) -> None:
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            _replace_norms(child, norm)
            continue
        channels = child.num_features
        new = FrozenBatchNorm2d(channels, eps=child.eps) if norm == "frozen" else nn.GroupNorm(math.gcd(channels, 16), channels)
        if norm == "frozen":
            new.load_state_dict({key: value for key, value in child.state_dict().items() if key != "num_batches_tracked"})
        setattr(module, name, new)


def _find_map(network: nn.Module, size: list[int], stride: int, layer: str | None) -> tuple[str, int, tuple[int, int]]:
    """The graph's name of `layer`, or of the deepest map of that stride; its channels and its grid."""
    nodes = get_graph_node_names(network)[1][1:]  # without the input
    parts = {".".join(node.split(".")[:depth]) for node in nodes for depth in range(1, node.count(".") + 2)}
    if layer is not None and layer not in parts:
        raise ValueError(
            f"layer={layer!r} is not in the network; the nearest: {', '.join(get_close_matches(layer, parts, n=5))}"
        )
    every = create_feature_extractor(network, [layer] if layer else nodes).eval()
    try:
        with torch.no_grad():
            found = every(torch.zeros(1, 3, *size))
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"input_size={size} is not for this network: {' '.join(str(error).split())[:200]}") from error
    maps = {node: value.shape for node, value in found.items() if isinstance(value, Tensor) and value.ndim == 4}
    # Pixels between cells, down and across: where the channels are last (inside of ConvNeXt's blocks), they are no such thing.
    strides = {node: [side / cells for side, cells in zip(size, shape[2:], strict=True)] for node, shape in maps.items()}
    maps = {node: shape for node, shape in maps.items() if max(strides[node]) < 2 * min(strides[node])}
    wanted = [{side // stride, math.ceil(side / stride)} for side in size]  # networks differ in what they do with a rest
    for node, shape in reversed(maps.items()):
        if layer or all(cells in fitting for cells, fitting in zip(shape[2:], wanted, strict=True)):
            return node, shape[1], tuple(shape[2:])
    if layer:
        raise ValueError(f"layer={layer!r} gives no map (b c h w)")
    raise ValueError(
        f"stride={stride}: of input_size={size} the network has no maps (b c h w) of that stride, but of "
        f"{sorted({round(strides[node][0]) for node in maps})}"
    )
