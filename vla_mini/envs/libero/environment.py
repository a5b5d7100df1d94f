"""LIBERO (Liu et al. 2023) as an `Environment`: a sentence, images and the hand's state -> the hand's motion.

Tasks, sentences, stored initial states, idle steps, image orientation, state and horizons are those of LeRobot's evaluation.
"""

from typing import Any, ClassVar, NamedTuple, get_args

import numpy as np
from gymnasium import spaces

from vla_mini.envs.libero.expert import PickAndPlace
from vla_mini.envs.libero.suites import SUITES, Task, env_id, load_tasks, quiet
from vla_mini.envs.mujoco import Cameras, Drawing, Render
from vla_mini.envs.seeds import scene_seed
from vla_mini.envs.spec import EnvSpec, observation_space
from vla_mini.envs.suite import SuiteEnvironment
from vla_mini.utils.errors import did_you_mean
from vla_mini.utils.features import Features

CAMERAS = {"image": "agentview", "wrist_image": "robot0_eye_in_hand"}  # names in datasets -> in LIBERO
DRAWING = Drawing(full_size=256, scale=1, vertex_distance=0.01, hidden_groups=(0,))  # 0: shapes for collisions
IDLE_STEPS, IDLE = 10, (0, 0, 0, 0, 0, 0, -1)  # at the start, while objects fall into place
STATE = ("x", "y", "z", "axis_x", "axis_y", "axis_z", "finger_left", "finger_right")
ACTION = ("dx", "dy", "dz", "drx", "dry", "drz", "grip")


class Libero(SuiteEnvironment):
    """The tasks of a suite in turn, or one of them.

    - suite: one of SUITES
    - task: the name of one of its tasks; empty: all of them
    - image_size: pixels of the square images
    - wrist: whether there is an image of the wrist's camera, too
    - render: see `Cameras`

    An evaluation with seed 0 starts from LIBERO's stored initial states; all other scenes are drawn anew, from the same
    regions. "swapped" is the sentence of another task of the same scene, and success is then what that one asks for. Raises
    ValueError for an unknown task, and where a package or a library is missing.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 20}
    action_space = spaces.Box(-1.0, 1.0, (7,), np.float32)

    def __init__(
        self,
        *,
        suite: str,
        task: str = "",
        image_size: str | int = 128,
        wrist: str | bool = False,
        render: Render = "fast",
        render_mode: str | None = "rgb_array",
    ) -> None:
        if render not in get_args(Render):
            raise ValueError(f"render={render!r} is not one of {', '.join(get_args(Render))}")
        tasks = {each.name: each for each in load_tasks(suite)}
        if task and task not in tasks:
            raise ValueError(f"task={task!r} is not one of {suite}'s; {did_you_mean(task, tasks)}")
        self._tasks = {task: tasks[task]} if task else tasks
        size, two = int(image_size), str(wrist).lower() == "true"
        cameras = tuple(CAMERAS) if two else tuple(CAMERAS)[:1]
        self.render_mode, self._drawing, self._scene = render_mode, {"size": size, "render": render}, None
        swapped = {"swapped": "these scenes with the sentence of another of the scene's tasks, which is what counts as success"}
        self.env_spec = EnvSpec(
            id=f"{env_id(suite)}?task={task}&image_size={size}&wrist={two}&render={render}",
            features=Features(cameras=cameras, image_size=(size, size), state=STATE, action=ACTION, fps=20),
            robot_type="panda",
            max_episode_steps=SUITES[suite][2],
            tasks={name: each.sentence for name, each in self._tasks.items()},
            checks=(swapped if all(map(self.others, self._tasks)) else {}) | {"blank": "these scenes without a sentence"},
            vectorization="async",
            action_noise=0.3,
            has_expert=True,
        )
        self.observation_space = observation_space(self.env_spec.features, -4, 4, self.env_spec.tasks.values())

    def others(self, task: str) -> list[str]:
        ours = self._tasks[task]
        return [name for name, each in self._tasks.items() if each.scene == ours.scene and each.sentence != ours.sentence]

    def start(self, task: str, number: int, *, purpose: str, seed: int) -> None:
        placed, self._goal = self._tasks[self.task], self._tasks[task].goal
        if self._scene is None or self._scene.key != placed.scene:
            self.close()
            self._scene = load_scene(placed, **self._drawing)  # takes seconds
        states = placed.initial_states
        stored = states[number % len(states)] if purpose == "evaluation" and seed == 0 else None
        self._values = self._scene.reset(scene_seed(purpose, seed, number) % 2**32, stored)
        self._expert = PickAndPlace(self._scene.simulation, self._goal)

    def simulate(self, action: np.ndarray) -> tuple[float, bool]:
        self._values = self._scene.simulation.step(action.astype(float))[0]
        success = self._scene.holds(self._goal)
        return float(success), success

    def expert_action(self) -> np.ndarray:
        """What the scripted expert does in the present state, float32 (7,). It sees where objects are."""
        return self._expert.action(self._values)

    def close(self) -> None:
        if self._scene is not None:
            self._scene.cameras.close()
            self._scene.simulation.close()
            self._scene = None

    def draw(self, camera: str) -> np.ndarray:
        # The suite stores images upside down, and LeRobot's evaluation rotates them: what is left is a mirror image.
        return np.ascontiguousarray(self._scene.cameras.image(self._scene.simulation.sim.data._data, CAMERAS[camera])[:, ::-1])

    def state(self) -> np.ndarray:
        from robosuite.utils.transform_utils import quat2axisangle

        position, turn = self._values["robot0_eef_pos"], quat2axisangle(self._values["robot0_eef_quat"])
        return np.concatenate([position, turn, self._values["robot0_gripper_qpos"]]).astype(np.float32)


class Scene(NamedTuple):
    """A scene, which several tasks may share."""

    key: str
    simulation: Any  # LIBERO's ControlEnv
    cameras: Cameras

    def holds(self, goal: list[list[str]]) -> bool:
        """Whether all of these predicates are true now."""
        return all(self.simulation.env._eval_predicate(predicate) for predicate in goal)

    def reset(self, seed: int, stored: np.ndarray | None) -> dict[str, np.ndarray]:
        """LIBERO's observation after the objects were placed and have come to rest.

        - stored: the initial state; None: it is drawn
        """
        state = np.random.get_state()  # LIBERO draws from NumPy's global generator.
        try:
            self.simulation.seed(seed)
            self.simulation.reset()
            self.simulation.robots[0].gripper.current_action[:] = 0  # robosuite leaves it as the last episode did
        finally:
            np.random.set_state(state)
        if stored is not None:
            self.simulation.set_init_state(stored)
        for _ in range(IDLE_STEPS):
            observation, *_ = self.simulation.step(np.array(IDLE, float))
        return observation


def load_scene(task: Task, *, size: int, render: Render) -> Scene:
    with quiet():
        from libero.libero.envs.env_wrapper import ControlEnv

        # Drawn by cameras of our own: robosuite's are slower, and raise errors when the process ends.
        drawing = {"use_camera_obs": False, "has_offscreen_renderer": False}
        # With hard_reset every reset builds the scene anew.
        simulation = ControlEnv(bddl_file_name=str(task.file), hard_reset=False, ignore_done=True, **drawing)
        simulation.reset()
    cameras = Cameras(simulation.sim.model._model, size=size, render=render, drawing=DRAWING)
    return Scene(task.scene, simulation, cameras)
