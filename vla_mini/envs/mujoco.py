"""What environments in MuJoCo share: a way to draw without a screen, and a camera."""

import atexit
import ctypes.util
import os
import platform
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from PIL import Image

Render = Literal["fast", "faithful"]

BACKENDS = {"egl": "EGL", "osmesa": "OSMesa"}  # MuJoCo's ways to draw without a screen -> the library that each needs
# Most of the time to draw goes into vertices: fast images have fewer, since those in one cube of so many metres become one, but
# are drawn larger and then averaged.
SUPERSAMPLING, VERTEX_DISTANCE = 2, 0.006


def import_mujoco(*, extra: str) -> None:
    """Import the package `mujoco`, to draw by MUJOCO_GL where it is set, else by EGL or OSMesa, whichever is installed.

    - extra: the one of pyproject.toml that installs it

    ValueError where the package or a library to draw with is missing: what installs it.
    """
    if find_spec("mujoco") is None:
        raise ValueError(f"the package mujoco is missing: pip install 'vla-mini[{extra}]'")
    if platform.system() == "Linux" and "MUJOCO_GL" not in os.environ:
        installed = [name for name, library in BACKENDS.items() if ctypes.util.find_library(library)]
        if not installed:
            packages = "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
            raise ValueError(f"MuJoCo needs EGL or OSMesa to draw without a screen, and neither is installed: {packages}")
        os.environ["MUJOCO_GL"] = installed[0]
    import_module("mujoco")


class Camera:
    """A camera of a MuJoCo model, drawn off screen. It changes the model's settings for drawing.

    - size: of the square images, in pixels
    - render: "fast", without shadows, reflections and skybox, and with fewer vertices; or "faithful", as the model says, at
      `full_size` and then resized
    """

    def __init__(self, model: Any, name: str, *, size: int, render: Render, full_size: int) -> None:
        import mujoco

        with suppress(ImportError):
            import triton  # noqa: F401  # Mesa's LLVM makes that of triton, which torch uses, crash if it is loaded first.
        flags = mujoco.mjtRndFlag
        self._name, self._size, self._off = name, size, ()
        drawn = full_size
        if render == "fast":
            drawn, self._off = SUPERSAMPLING * size, (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_SKYBOX)
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
            simplify_meshes(model, VERTEX_DISTANCE)
        model.vis.global_.offwidth = model.vis.global_.offheight = drawn
        self._renderer = mujoco.Renderer(model, drawn, drawn)
        atexit.register(self.close)  # after MuJoCo registered the end of its library, and so before it

    def image(self, data: Any) -> np.ndarray:
        """What the camera sees, uint8 (size, size, 3)."""
        self._renderer.update_scene(data, camera=self._name)
        for flag in self._off:
            self._renderer.scene.flags[flag] = 0
        drawn = Image.fromarray(self._renderer.render())
        return np.array(drawn.resize((self._size, self._size), Image.Resampling.BOX))

    def close(self) -> None:
        atexit.unregister(self.close)
        self._renderer.close()


def simplify_meshes(model: Any, distance: float) -> None:
    """Fewer faces to draw: vertices in one cube of `distance` metres become one, and faces that have no area or are there
    already go. Nothing changes in the simulation, whose collisions are those of the meshes' hulls."""
    for mesh in range(model.nmesh):
        start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        vertices = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]]
        _, first, cubes = np.unique(np.floor(vertices / distance), axis=0, return_index=True, return_inverse=True)
        faces = first[cubes.ravel()][model.mesh_face[start : start + count]]
        corners = np.sort(faces, axis=1)
        with_area = np.flatnonzero((np.diff(corners, axis=1) > 0).all(axis=1))
        kept = np.sort(with_area[np.unique(corners[with_area], axis=0, return_index=True)[1]])
        model.mesh_face[start : start + count] = faces
        for values in (model.mesh_face, model.mesh_facenormal, model.mesh_facetexcoord):
            values[start : start + len(kept)] = values[start : start + count][kept]
        model.mesh_facenum[mesh] = len(kept)
