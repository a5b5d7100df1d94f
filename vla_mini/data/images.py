"""Images as cameras, files and robots give them -> uint8 (h, w, 3), RGB, of the size that a policy takes.

The same function resizes the frames of datasets and the observations of a policy that acts.
"""

import io
from typing import TYPE_CHECKING

import numpy as np

from vla_mini.utils.errors import one_line
from vla_mini.utils.features import Resize

if TYPE_CHECKING:
    from PIL.Image import Image


def resize(image: np.ndarray, size: tuple[int, int], how: Resize) -> np.ndarray:
    """uint8 (h, w, 3) -> uint8 (*size, 3); an image of that `size` stays as it is.

    - how: "letterbox": the whole image, with black bars where the proportions differ; "stretch": without regard to proportions;
      "crop": the largest part in the middle that has the right proportions
    """
    (height, width), (to_height, to_width) = image.shape[:2], size
    if (height, width) == (to_height, to_width):
        return image
    from PIL import Image  # not at the top: acting with images of the right size needs none

    picture = Image.fromarray(image)
    if how == "letterbox":
        scale = min(to_height / height, to_width / width)
        inner = (max(1, round(height * scale)), max(1, round(width * scale)))
        top, left = (to_height - inner[0]) // 2, (to_width - inner[1]) // 2
        framed = np.zeros((*size, 3), np.uint8)
        framed[top : top + inner[0], left : left + inner[1]] = _scale(picture, inner)
        return framed
    box = None
    if how == "crop":
        scale = min(height / to_height, width / to_width)
        inner_height, inner_width = to_height * scale, to_width * scale
        top, left = (height - inner_height) / 2, (width - inner_width) / 2
        box = (left, top, left + inner_width, top + inner_height)
    return _scale(picture, size, box)


def _scale(picture: "Image", size: tuple[int, int], box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    from PIL.Image import Resampling

    # Bilinear with antialiasing; much larger images are first reduced by whole factors, which is three times as fast.
    return np.asarray(picture.resize(size[::-1], Resampling.BILINEAR, box, reducing_gap=2.0))


def decode(encoded: bytes) -> np.ndarray:
    """A PNG, a JPEG or another file that Pillow reads -> uint8 (h, w, 3). ValueError for one that is damaged, or no colours."""
    from PIL import Image, UnidentifiedImageError

    try:
        return to_rgb(Image.open(io.BytesIO(encoded)))
    except UnidentifiedImageError:
        raise ValueError("it is not an image that Pillow can read") from None
    except Exception as error:  # whatever Pillow raises
        raise ValueError(f"its image cannot be decoded: {one_line(error)}") from error


def to_rgb(image: "Image") -> np.ndarray:
    """Grey, palette and transparent images as RGB. ValueError for 16 bits a pixel and for floats, which are no colours."""
    if image.mode.startswith("I") or image.mode == "F":
        kind = "of floats" if image.mode == "F" else "of 16 or 32 bits a pixel"
        raise ValueError(f"it is an image {kind} (mode {image.mode}), as depth is, and not of colours")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
