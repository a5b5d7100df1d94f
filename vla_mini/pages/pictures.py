"""Arrays in, PNG files out: what a camera saw, and a heat map over it."""

import io

import matplotlib
import numpy as np
from PIL import Image

LEAST_SIDE = 256  # pixels; smaller images are enlarged, each pixel to a square, so that outlines have room


def photograph(image: np.ndarray) -> bytes:
    """A PNG of an image, uint8 (h, w, 3)."""
    return _png(_enlarged(image))


def heat_map(image: np.ndarray, heat: np.ndarray, *, outline: np.ndarray | None = None) -> bytes:
    """A PNG of `heat`, (h, w), at least 0, glowing over the dimmed image, uint8 (h, w, 3); a line around the mask `outline`.

    The scale ends at the 99.9th percentile, and follows the square root: what matters a little shows, too.
    """
    most = max(float(np.quantile(heat, 0.999)), np.finfo(np.float32).tiny)
    strength = np.sqrt(np.clip(heat / most, 0, 1))[..., None]
    grey = image.astype(np.float32).mean(axis=-1, keepdims=True)
    glow = 255 * matplotlib.colormaps["inferno"](0.25 + 0.7 * strength[..., 0])[..., :3]
    pixels = _enlarged(np.uint8((1 - strength) * 0.55 * grey + strength * glow))
    if outline is not None:
        pixels[_border(_enlarged(outline))] = (120, 255, 190)
    return _png(pixels)


def _enlarged(pixels: np.ndarray) -> np.ndarray:
    times = -(-LEAST_SIDE // min(pixels.shape[:2]))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def _border(mask: np.ndarray) -> np.ndarray:
    """The pixels just outside of `mask`, two deep."""
    wide = np.pad(mask, 2)
    rows, columns = mask.shape
    near = [wide[i : i + rows, j : j + columns] for i in range(5) for j in range(5)]
    return np.any(near, axis=0) & ~mask


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
