"""A scene and a gripper -> a 64x64 RGB image from above. NumPy only; edges are antialiased by signed distances."""

import numpy as np

from vla_mini.envs.toy_pick.scene import SceneObject
from vla_mini.envs.toy_pick.spec import SPEC

SIZE = SPEC.features.image_size[0]  # images are square
REACH = 1.1  # the camera shows [-REACH, REACH] in both directions
SCALE = SIZE / (2 * REACH)  # pixels for one table unit

TABLE = np.array([196, 186, 172], np.float32)
SHADOW = np.array([60, 54, 48], np.float32)
STEEL = np.array([245, 245, 250], np.float32)
PAINTS = {
    "red": (214, 40, 40),
    "green": (46, 150, 70),
    "blue": (44, 92, 214),
    "yellow": (244, 208, 48),
    "purple": (132, 52, 172),
    "orange": (246, 132, 24),
}
FURTHER_PAINTS = {"cyan": (38, 196, 214), "pink": (244, 128, 180), "black": (40, 40, 44)}  # in no scene, unless one is changed
PIXELS = np.arange(SIZE, dtype=np.float32) + 0.5


def draw_table(generator: np.random.Generator) -> np.ndarray:
    """An empty table with a faint grain, float32 (64, 64, 3)."""
    return TABLE + generator.normal(0.0, 3.0, (SIZE, SIZE, 1)).astype(np.float32)


def draw_object(image: np.ndarray, item: SceneObject, *, x: float, y: float, height: float = 0.0) -> None:
    """Paint `item` onto `image` (float32, in place) at (x, y); the higher it is, the larger it looks."""
    column, row = _to_pixels(x, y)
    radius = item.size * SCALE * (1 + 0.3 * height)
    rows, columns = _window(row, radius + 2), _window(column, radius + 2)
    u, v = (PIXELS[columns] - column)[None, :] / radius, (PIXELS[rows] - row)[:, None] / radius
    light = 1.0 - 0.18 * np.clip(u + v, -1, 1)  # lit from the upper left
    paint = np.array((PAINTS | FURTHER_PAINTS)[item.colour], np.float32) * item.brightness
    coverage = np.clip(0.5 - _distance(item.shape, u, v) * radius, 0, 1)
    region = image[rows, columns]
    region += coverage[..., None] * (np.clip(light[..., None] * paint, 0, 255) - region)


def draw_gripper(image: np.ndarray, *, x: float, y: float, height: float, closedness: float, shadow: bool = False) -> None:
    """Paint the two jaws, larger when higher and nearer to each other when closed; or their shadow on the table.

    The higher the gripper, the further away its shadow falls.
    """
    column, row = np.add(_to_pixels(x, y), 7.0 * height if shadow else 0.0)
    scale = 1 + 0.5 * height
    gap, long, thick = (7.0 - 3.0 * closedness) * scale, 4.5 * scale, 1.3 * scale
    rows, columns = _window(row, long + 2), _window(column, gap + thick + 2)
    along = np.clip(long + 0.5 - np.abs(PIXELS[rows] - row), 0, 1)
    beside = np.clip(thick + 0.5 - np.abs(np.abs(PIXELS[columns] - column) - gap), 0, 1)
    opacity, paint = (0.45, SHADOW) if shadow else (1.0, STEEL)
    region = image[rows, columns]
    region += (opacity * along[:, None] * beside[None, :])[..., None] * (paint - region)


def object_mask(item: SceneObject) -> np.ndarray:
    """Which pixels `item` covers where it lies on the table, bool (64, 64)."""
    column, row = _to_pixels(item.x, item.y)
    radius = item.size * SCALE
    return _distance(item.shape, (PIXELS - column)[None, :] / radius, (PIXELS - row)[:, None] / radius) <= 0


def _to_pixels(x: float, y: float) -> tuple[float, float]:
    """Table coordinates -> (column, row); y points up on the table and rows go down."""
    return (x + REACH) * SCALE, (REACH - y) * SCALE


def _window(centre: float, reach: float) -> slice:
    return slice(max(0, int(centre - reach)), min(SIZE, int(centre + reach) + 1))


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the outline of a shape of half-width 1, negative inside; u to the right, v down."""
    if shape == "cube":
        return np.maximum(np.abs(u), np.abs(v)) - 0.86
    if shape == "ball":
        return np.sqrt(u * u + v * v) - 1.0
    if shape == "cone":
        return np.maximum(0.894 * np.abs(u) - 0.447 * v - 0.447, v - 0.85)
    assert shape == "star", shape
    # The plane is folded into one tenth of the circle, in which one straight edge remains, from a tip to a notch.
    angle = np.abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.sqrt(u * u + v * v)
    tip, notch = np.array([1.12, 0.0]), 0.5 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    x, y = notch - tip
    normal = np.array([y, -x]) / np.hypot(x, y)
    return (radius * np.cos(angle) - tip[0]) * normal[0] + radius * np.sin(angle) * normal[1]
