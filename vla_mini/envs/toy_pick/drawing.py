"""A scene and a gripper -> a 64x64 RGB image, seen from above. NumPy only; edges are smoothed by signed distances."""

import numpy as np

from vla_mini.envs.toy_pick.scene import Thing

SIZE = 64
REACH = 1.1  # the camera sees [-REACH, REACH] in both directions
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
PIXELS = np.arange(SIZE, dtype=np.float32) + 0.5


def to_pixels(x: float, y: float) -> tuple[float, float]:
    """Table coordinates -> (column, row) in pixels; y points up on the table and rows go down."""
    return (x + REACH) * SCALE, (REACH - y) * SCALE


def draw_table(generator: np.random.Generator) -> np.ndarray:
    """An empty table with a faint grain, float32 (64, 64, 3)."""
    return TABLE + generator.normal(0.0, 3.0, (SIZE, SIZE, 1)).astype(np.float32)


def draw_thing(image: np.ndarray, thing: Thing, *, x: float, y: float, height: float = 0.0) -> None:
    """Paint `thing` onto `image` (float32, in place) at (x, y); the higher it is, the larger it looks."""
    column, row = to_pixels(x, y)
    radius = thing.size * SCALE * (1 + 0.3 * height)
    rows, columns = _window(row, radius + 2), _window(column, radius + 2)
    u, v = (PIXELS[columns] - column)[None, :] / radius, (PIXELS[rows] - row)[:, None] / radius
    coverage = np.clip(0.5 - _distance(thing.shape, u, v) * radius, 0, 1)
    light = 1.0 - 0.18 * np.clip(u + v, -1, 1)  # lit from the upper left
    paint = np.array(PAINTS[thing.colour], np.float32) * thing.brightness
    _blend(image, rows, columns, coverage, np.clip(light[..., None] * paint, 0, 255))


def draw_shadow(image: np.ndarray, *, x: float, y: float, height: float, closedness: float) -> None:
    """Paint the gripper's shadow onto the table: the higher the gripper, the further away it falls."""
    _draw_jaws(image, x=x, y=y, height=height, closedness=closedness, shift=7.0 * height, paint=SHADOW, opacity=0.45)


def draw_gripper(image: np.ndarray, *, x: float, y: float, height: float, closedness: float) -> None:
    """Paint the two jaws: larger when higher, nearer to each other when closed."""
    _draw_jaws(image, x=x, y=y, height=height, closedness=closedness, shift=0.0, paint=STEEL, opacity=1.0)


def thing_mask(thing: Thing) -> np.ndarray:
    """Which pixels `thing` covers where it lies on the table, bool (64, 64)."""
    column, row = to_pixels(thing.x, thing.y)
    radius = thing.size * SCALE
    return _distance(thing.shape, (PIXELS - column)[None, :] / radius, (PIXELS - row)[:, None] / radius) <= 0


def _draw_jaws(image, *, x, y, height, closedness, shift, paint, opacity) -> None:
    column, row = np.add(to_pixels(x, y), shift)
    scale = 1 + 0.5 * height
    gap, long, thick = (7.0 - 3.0 * closedness) * scale, 4.5 * scale, 1.3 * scale
    rows, columns = _window(row, long + 2), _window(column, gap + thick + 2)
    along = np.clip(long + 0.5 - np.abs(PIXELS[rows] - row), 0, 1)
    beside = np.clip(thick + 0.5 - np.abs(np.abs(PIXELS[columns] - column) - gap), 0, 1)
    _blend(image, rows, columns, opacity * along[:, None] * beside[None, :], paint)


def _window(centre: float, reach: float) -> slice:
    return slice(max(0, int(centre - reach)), min(SIZE, int(centre + reach) + 1))


def _blend(image: np.ndarray, rows: slice, columns: slice, coverage: np.ndarray, paint: np.ndarray) -> None:
    region = image[rows, columns]
    region += coverage[..., None] * (paint - region)


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the outline of a shape of half-width 1, negative inside; u to the right, v down."""
    if shape == "cube":
        return np.maximum(np.abs(u), np.abs(v)) - 0.86
    if shape == "ball":
        return np.sqrt(u * u + v * v) - 1.0
    if shape == "cone":
        return np.maximum(0.894 * np.abs(u) - 0.447 * v - 0.447, v - 0.85)
    if shape == "star":
        # A five-pointed star: fold the plane into one tenth of the circle, then one straight edge remains.
        angle = np.abs((np.arctan2(u, -v) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        radius = np.sqrt(u * u + v * v)
        tip, notch = np.array([1.12, 0.0]), 0.5 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
        edge = notch - tip
        normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
        return (radius * np.cos(angle) - tip[0]) * normal[0] + (radius * np.sin(angle) - tip[1]) * normal[1]
    raise AssertionError(f"no such shape: {shape}")
