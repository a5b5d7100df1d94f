"""LIBERO (Liu et al. 2023) as an `Environment`: a sentence, images and the hand's state -> the hand's motion.

Tasks, sentences, stored initial states, idle steps, image orientation, state and horizons are those of LeRobot's evaluation.
"""

from typing import Any, ClassVar, NamedTuple, get_args

import numpy as np
from gymnasium import spaces

from vla_mini.envs.libero.expert import PickAndPlace
from vla_mini.envs.libero.suites import SUITES, Task, env_id, load_tasks, quiet
from vla_mini.envs.mujoco import Cameras, Render
from vla_mini.envs.seeds import episode_generator, scene_seed
from vla_mini.envs.spec import Environment, EnvSpec
from vla_mini.utils.errors import did_you_mean
from vla_mini.utils.features import Features

CAMERAS = {"image": "agentview", "wrist_image": "robot0_eye_in_hand"}  # names in datasets -> in LIBERO
DRAWING = {"full_size": 256, "scale": 1, "vertex_distance": 0.01, "hidden_groups": (0,)}  # 0: shapes for collisions
IDLE_STEPS, IDLE = 10, (0, 0, 0, 0, 0, 0, -1)  # at the start, while objects fall into place
STEPS_AFTER_SUCCESS = 5  # of demonstrations, so that they show how to stay
STATE = ("x", "y", "z", "axis_x", "axis_y", "axis_z", "finger_left", "finger_right")
ACTION = ("dx", "dy", "dz", "drx", "dry", "drz", "grip")
OPTIONS = {"purpose": "evaluation", "seed": 0, "split": "seen", "instruction": "named", "render_every": 1}


class Libero(Environment):
    """The task of an episode is the next of the suite's: episode e plays task e modulo their number.

    - suite: one of SUITES
    - task: the name of one of its tasks; empty: all of them
    - image_size: pixels of the square images
    - wrist: whether there is an image of the wrist's camera, too
    - render: see `Cameras`

    An evaluation with seed 0 starts from LIBERO's stored initial states; all other scenes are drawn anew, from the same
    regions. The option `instruction` of `reset` is "named", "blank" (it is empty) or, where every task shares its scene with
    others, "swapped": that of one of these, and success is then what this one asks for. Raises ValueError for an unknown task,
    and where a package or a library is missing.
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
        self._tasks = load_tasks(suite)
        if task:
            names = [each.name for each in self._tasks]
            if task not in names:
                raise ValueError(f"task={task!r} is not one of {suite}'s; {did_you_mean(task, names)}")
            self._tasks = (self._tasks[names.index(task)],)
        size, two = int(image_size), str(wrist).lower() == "true"
        cameras = tuple(CAMERAS) if two else tuple(CAMERAS)[:1]
        self.render_mode, self._drawing, self._scene = render_mode, {"size": size, "render": render}, None
        swapped = {"swapped": "these scenes with the sentence of another of the scene's tasks, which is what counts as success"}
        self.env_spec = EnvSpec(
            id=f"{env_id(suite)}?task={task}&image_size={size}&wrist={two}&render={render}",
            features=Features(cameras=cameras, image_size=(size, size), state=STATE, action=ACTION, fps=20),
            robot_type="panda",
            max_episode_steps=SUITES[suite].steps,
            tasks={each.name: each.sentence for each in self._tasks},
            checks=(swapped if all(map(self._others, self._tasks)) else {}) | {"blank": "these scenes without a sentence"},
            vectorization="async",
            action_noise=0.3,
            has_expert=True,
        )
        sentences = "".join(each.sentence for each in self._tasks)
        self.observation_space = spaces.Dict(
            {
                "images": spaces.Dict({camera: spaces.Box(0, 255, (size, size, 3), np.uint8) for camera in cameras}),
                "state": spaces.Box(-4.0, 4.0, (len(STATE),), np.float32),
                "instruction": spaces.Text(min_length=0, max_length=128, charset=frozenset(sentences)),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        options = OPTIONS | (options or {})
        episode = int(self.np_random.integers(2**31)) if seed is None else seed
        number, index = divmod(episode, len(self._tasks))
        purpose, self._task = options["purpose"], self._tasks[index]
        named = {"named": self._task, "blank": self._task}
        if others := self._others(self._task):
            generator = episode_generator(purpose, options["seed"], episode, stream=2)
            named["swapped"] = others[generator.integers(len(others))]
        if options["instruction"] not in named:
            raise ValueError(f"instruction={options['instruction']!r} is not one of {', '.join(named)}")
        self._goal = named[options["instruction"]].goal
        self.instruction = "" if options["instruction"] == "blank" else named[options["instruction"]].sentence
        if self._scene is None or self._scene.key != self._task.scene:
            self.close()
            self._scene = load_scene(self._task, **self._drawing)  # takes seconds
        stored = self._task.initial_states if purpose == "evaluation" and options["seed"] == 0 else None
        self._values = self._scene.reset(
            scene_seed(purpose, options["seed"], number) % 2**32, None if stored is None else stored[number % len(stored)]
        )
        self._demonstrates, self._render_every = purpose in ("demonstration", "validation"), options["render_every"]
        self._expert = PickAndPlace(self._scene.simulation, self._goal)
        self._steps = self._successes = 0
        return self._observe(), self._info()

    def step(self, action: np.ndarray):
        self._values = self._scene.simulation.step(np.clip(action, -1, 1).astype(float))[0]
        self._steps += 1
        self._successes += self._scene.holds(self._goal)
        enough = STEPS_AFTER_SUCCESS if self._demonstrates else 1
        return self._observe(), float(self._successes > 0), self._successes >= enough, False, self._info()

    def expert_action(self) -> np.ndarray:
        """What the scripted expert does in the present state, float32 (7,). It sees where objects are."""
        return self._expert.action(self._values)

    def close(self) -> None:
        if self._scene is not None:
            self._scene.cameras.close()
            self._scene.simulation.close()
            self._scene = None

    def render(self) -> np.ndarray:
        """The first camera's image, uint8 (image_size, image_size, 3)."""
        return self._draw("image")

    def _draw(self, camera: str) -> np.ndarray:
        # The suite stores images upside down, and LeRobot's evaluation rotates them: what is left is a mirror image.
        return np.ascontiguousarray(self._scene.cameras.image(self._scene.data, CAMERAS[camera])[:, ::-1])

    def _others(self, task: Task) -> list[Task]:
        """The tasks of the same scene with another sentence."""
        return [other for other in self._tasks if other.scene == task.scene and other.sentence != task.sentence]

    def _observe(self) -> dict[str, Any]:
        if self._steps % self._render_every == 0:
            self._images = {camera: self._draw(camera) for camera in self.env_spec.features.cameras}
        from robosuite.utils.transform_utils import quat2axisangle

        position, turn = self._values["robot0_eef_pos"], quat2axisangle(self._values["robot0_eef_quat"])
        state = np.concatenate([position, turn, self._values["robot0_gripper_qpos"]])
        return {"images": self._images, "state": state.astype(np.float32), "instruction": self.instruction}

    def _info(self) -> dict[str, Any]:
        return {"success": self._successes > 0, "task": self._task.name}


class Scene(NamedTuple):
    """A scene, which several tasks may share."""

    key: str
    simulation: Any  # LIBERO's ControlEnv
    cameras: Cameras

    @property
    def data(self) -> Any:
        return self.simulation.sim.data._data

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
        simulation = ControlEnv(
            bddl_file_name=str(task.file),
            use_camera_obs=False,
            has_offscreen_renderer=False,
            hard_reset=False,  # else every reset builds the scene anew
            ignore_done=True,
        )
        simulation.reset()
    cameras = Cameras(simulation.sim.model._model, size=size, render=render, **DRAWING)
    return Scene(task.scene, simulation, cameras)
