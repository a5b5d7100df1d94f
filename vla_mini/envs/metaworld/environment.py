"""Meta-World (Yu et al. 2020) as an `Environment`: a sentence, one camera's image and the hand's state -> dx, dy, dz, grip.

Tasks, sentences, camera, state, scenes and horizon are those of LeRobot's evaluation. The state is the hand's alone: where
objects and goals are has to be seen.
"""

import warnings
from typing import Any, ClassVar, NamedTuple, get_args

import numpy as np
from gymnasium import spaces

from vla_mini.envs.metaworld.tasks import GROUPS, SENTENCES, SUITES
from vla_mini.envs.mujoco import Cameras, Drawing, Render, import_mujoco
from vla_mini.envs.seeds import scene_seed
from vla_mini.envs.spec import EnvSpec, observation_space
from vla_mini.envs.suite import SuiteEnvironment
from vla_mini.utils.errors import did_you_mean
from vla_mini.utils.features import Features

CAMERA, CAMERA_POSITION = "corner2", (0.75, 0.075, 0.7)
DRAWING = Drawing(full_size=480, scale=2, vertex_distance=0.006)
# The part of the image that is looked at: left, top, side, of 0 to 1. All that the arm reaches is in the workspace.
VIEWS = {"workspace": (0.29, 0.15, 0.66), "whole": (0.0, 0.0, 1.0)}
STEPS = 500
FEATURES = {"cameras": (CAMERA,), "state": ("x", "y", "z", "opening"), "action": ("dx", "dy", "dz", "grip"), "fps": 80}


class MetaWorld(SuiteEnvironment):
    """One task, or the tasks of a suite in turn.

    - task: one of Meta-World's 50, such as "reach", or a suite of them, "mt10" or "mt50"
    - image_size: pixels of the square images
    - view: one of VIEWS
    - render: see `Cameras`

    "swapped" is the sentence of another task of the suite in this task's scene; success is still this task's. Raises ValueError
    for an unknown task, and where a package or a library is missing.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": FEATURES["fps"]}
    action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def __init__(
        self,
        *,
        task: str = "",
        image_size: str | int = 96,
        view: str = "workspace",
        render: Render = "fast",
        render_mode: str | None = "rgb_array",
    ) -> None:
        names = SUITES.get(task, (task,))
        if not task:
            raise ValueError("env.task is required: the name of one of Meta-World's tasks, such as reach")
        if names[0] not in SENTENCES:
            raise ValueError(f"task={task!r} is not one of Meta-World's; {did_you_mean(task, [*SUITES, *SENTENCES])}")
        for name, value, known in (("view", view, VIEWS), ("render", render, get_args(Render))):
            if value not in known:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}")
        size = int(image_size)
        import_mujoco(extra="metaworld")
        self.render_mode, self._drawing, self._scene = render_mode, {"size": size, "view": view, "render": render}, None
        groups = {group: tuple(name for name in names if name in tasks) for group, tasks in GROUPS.items()}
        swapped = "these scenes with another task's sentence: success is still the task that it would have named"
        self.env_spec = EnvSpec(
            id=f"vla_mini/MetaWorld-v0?task={task}&image_size={size}&view={view}&render={render}",
            features=Features(image_size=(size, size), **FEATURES),
            robot_type="sawyer",
            max_episode_steps=STEPS,
            tasks={name: SENTENCES[name] for name in names},
            groups={group: tasks for group, tasks in groups.items() if tasks} if len(names) > 1 else {},
            checks=({"swapped": swapped} if len(names) > 1 else {}) | {"blank": "these scenes without a sentence"},
            vectorization="async",
            action_noise=0.5,
            has_expert=True,
        )
        low, high = (-0.525, 0.348, -0.0525, -1), (0.525, 1.025, 0.7, 1)
        self.observation_space = observation_space(self.env_spec.features, low, high, SENTENCES.values())

    def others(self, task: str) -> list[str]:
        return [name for name in self.env_spec.tasks if SENTENCES[name] != SENTENCES[task]]

    def start(self, task: str, number: int, *, purpose: str, seed: int) -> None:
        if self._scene is None or self._scene.name != self.task:
            self.close()
            self._scene = load_scene(self.task, **self._drawing)  # takes a second
        simulation, self._expert = self._scene.simulation, self._scene.expert()
        simulation.seed(scene_seed(purpose, seed, number))
        self._values, _ = simulation.reset()
        simulation.set_state(simulation.data.qpos, simulation.data.qvel)  # else the first image shows another goal

    def simulate(self, action: np.ndarray) -> tuple[float, bool]:
        self._values, reward, _, _, info = self._scene.simulation.step(action)
        return float(reward), bool(info["success"])

    def expert_action(self) -> np.ndarray:
        """What Meta-World's scripted policy does in the present state, float32 (4,). It sees where objects and goals are."""
        with warnings.catch_warnings(action="ignore"):  # some of the policies divide by zero, or name deprecated functions
            return np.clip(self._expert.get_action(self._values), -1, 1).astype(np.float32)

    def close(self) -> None:
        if self._scene is not None:
            self._scene.cameras.close()
            self._scene = None

    def draw(self, camera: str) -> np.ndarray:
        image = self._scene.cameras.image(self._scene.simulation.data, camera)
        return np.ascontiguousarray(image[::-1, ::-1])  # this camera is mounted upside down

    def state(self) -> np.ndarray:
        space = self.observation_space["state"]
        return np.clip(self._values[:4], space.low, space.high).astype(np.float32)


class Scene(NamedTuple):
    """A task: its simulation, its cameras, and the class of its expert."""

    name: str
    simulation: Any
    cameras: Cameras
    expert: Any


def load_scene(name: str, *, size: int, view: str, render: Render) -> Scene:
    import metaworld
    from metaworld.policies import ENV_POLICY_MAP

    version = f"{name}-v3"
    suite = metaworld.MT1(version, seed=42)
    simulation = suite.train_classes[version]()
    simulation.set_task(suite.train_tasks[0])
    simulation._freeze_rand_vec, simulation.seeded_rand_vec = False, True  # each seed is another scene
    simulation.model.cam_pos[simulation.model.camera(CAMERA).id] = CAMERA_POSITION
    left, top, side = VIEWS[view]
    crop = 1 - left - side, 1 - top - side, side  # as the camera sees it, upside down
    cameras = Cameras(simulation.model, size=size, render=render, drawing=DRAWING._replace(crop=crop))
    return Scene(name, simulation, cameras, ENV_POLICY_MAP[version])
