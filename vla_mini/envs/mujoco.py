"""What environments in MuJoCo share: a way to draw without a screen, and cameras."""

import atexit
import ctypes.util
import os
import platform
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

Render = Literal["fast", "faithful"]

BACKENDS = {"egl": "EGL", "osmesa": "OSMesa"}  # MuJoCo's ways to draw without a screen -> the library that each needs


def import_mujoco(*, extra: str) -> None:
    """Import the package `mujoco`, to draw by MUJOCO_GL where it is set, else by EGL or OSMesa, whichever is installed.

    - extra: the one of pyproject.toml that installs it, and a package of that name

    ValueError where a package or a library to draw with is missing: what installs it.
    """
    for package in ("mujoco", extra):
        if find_spec(package) is None:
            raise ValueError(f"the package {package} is missing: pip install 'vla-mini[{extra}]'")
    if platform.system() == "Linux" and "MUJOCO_GL" not in os.environ:
        installed = [name for name, library in BACKENDS.items() if ctypes.util.find_library(library)]
        if not installed:
            packages = "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
            raise ValueError(f"MuJoCo needs EGL or OSMesa to draw without a screen, and neither is installed: {packages}")
        os.environ["MUJOCO_GL"] = installed[0]
    import_module("mujoco")


class Drawing(NamedTuple):
    """How images are drawn."""

    full_size: int  # pixels of the suite's own images
    scale: int  # fast images are drawn so many times as large, and averaged
    vertex_distance: float  # in fast images, all vertices of a mesh in one cube of so many metres become one
    hidden_groups: tuple[int, ...] = ()  # of geometries
    crop: tuple[float, float, float] = (0, 0, 1)  # the square of the whole image that is drawn: left, top, side, of 0 to 1


class Cameras:
    """The cameras of a MuJoCo model, drawn off screen. It changes the model's settings for drawing.

    - size: of the square images, in pixels
    - render: "fast", without shadows, reflections and skybox, and with fewer vertices, which take most of the time; or
      "faithful", as the model says, at the suite's own size and then resized
    """

    def __init__(self, model: Any, *, size: int, render: Render, drawing: Drawing) -> None:
        import mujoco

        with suppress(ImportError):
            import triton  # noqa: F401  # Mesa's LLVM makes that of triton, which torch uses, crash if it is loaded first.
        self._size, self._options, self._crop, flags = size, mujoco.MjvOption(), drawing.crop, mujoco.mjtRndFlag
        self._options.geomgroup[list(drawing.hidden_groups)] = 0
        drawn, self._off = drawing.full_size, ()
        if render == "fast":
            drawn, self._off = drawing.scale * size, (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_SKYBOX)
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
            simplify_meshes(model, drawing.vertex_distance)
        model.vis.global_.offwidth = model.vis.global_.offheight = drawn
        self._renderer = mujoco.Renderer(model, drawn, drawn)
        atexit.register(self.close)  # after MuJoCo registered the end of its library, and so before it

    def image(self, data: Any, camera: str) -> np.ndarray:
        """What a camera sees, uint8 (size, size, 3)."""
        self._renderer.update_scene(data, camera=camera, scene_option=self._options)
        left, top, side = self._crop
        for view in self._renderer.scene.camera:  # how it cuts the plane nearest to the camera
            height = view.frustum_top - view.frustum_bottom
            view.frustum_center += height * (left + side / 2 - 0.5)
            view.frustum_top -= height * top
            view.frustum_bottom = view.frustum_top - height * side
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
