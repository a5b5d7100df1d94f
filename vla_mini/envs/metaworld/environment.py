"""Meta-World (Yu et al. 2020) as an `Environment`: a sentence, one camera's image and the hand's state -> dx, dy, dz, grip.

Tasks, sentences, camera, state, scenes and horizon are those of LeRobot's evaluation. The state is the hand's alone: where
objects and goals are has to be seen.
"""

import warnings
from typing import Any, ClassVar, NamedTuple, get_args

import numpy as np
from gymnasium import spaces

from vla_mini.envs.metaworld.tasks import GROUPS, SENTENCES, SUITES
from vla_mini.envs.mujoco import Cameras, Render, import_mujoco
from vla_mini.envs.seeds import episode_generator, scene_seed
from vla_mini.envs.spec import Environment, EnvSpec
from vla_mini.utils.errors import did_you_mean
from vla_mini.utils.features import Features

CAMERA, CAMERA_POSITION = "corner2", (0.75, 0.075, 0.7)
DRAWING = {"full_size": 480, "scale": 2, "vertex_distance": 0.006}  # pixels of the suite's own images, and see `Cameras`
# The part of the image that is looked at: left, top, side, of 0 to 1. All that the arm reaches is in the workspace.
VIEWS = {"workspace": (0.29, 0.15, 0.66), "whole": (0.0, 0.0, 1.0)}
STEPS = 500
STEPS_AFTER_SUCCESS = 5  # of demonstrations, so that they show how to stay
OPTIONS = {"purpose": "evaluation", "seed": 0, "split": "seen", "instruction": "named", "render_every": 1}
FEATURES = {"cameras": (CAMERA,), "state": ("x", "y", "z", "opening"), "action": ("dx", "dy", "dz", "grip"), "fps": 80}


class MetaWorld(Environment):
    """The task of an episode is the next of the suite's: episode e plays task e modulo their number.

    - task: one of Meta-World's 50, such as "reach", or a suite of them, "mt10" or "mt50"
    - image_size: pixels of the square images
    - view: one of VIEWS
    - render: see `Cameras`

    The option `instruction` of `reset` is "named", "blank" (it is empty) or, in a suite, "swapped" (that of another of its
    tasks, in this task's scene). Raises ValueError for an unknown task, and where a package or a library is missing.
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
        self.render_mode, self._names = render_mode, names
        self._drawing, self._scene = {"size": size, "view": view, "render": render}, None
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
        self.observation_space = spaces.Dict(
            {
                "images": spaces.Dict({CAMERA: spaces.Box(0, 255, (size, size, 3), np.uint8)}),
                "state": spaces.Box(np.float32([-0.525, 0.348, -0.0525, -1]), np.float32([0.525, 1.025, 0.7, 1])),
                "instruction": spaces.Text(min_length=0, max_length=64, charset=frozenset("".join(SENTENCES.values()))),
            }
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        options = OPTIONS | (options or {})
        episode = int(self.np_random.integers(2**31)) if seed is None else seed
        number, task = divmod(episode, len(self._names))
        if self._scene is None or self._scene.name != self._names[task]:
            self.close()
            self._scene = load_scene(self._names[task], **self._drawing)  # takes a second
        self._name, self._demonstrates = self._names[task], options["purpose"] in ("demonstration", "validation")
        self._values = self._scene.reset(scene_seed(options["purpose"], options["seed"], number))
        self._expert = self._scene.expert()
        sentences = {"named": SENTENCES[self._name], "blank": ""}
        if others := [name for name in self._names if SENTENCES[name] != SENTENCES[self._name]]:
            generator = episode_generator(options["purpose"], options["seed"], episode, stream=2)
            sentences["swapped"] = SENTENCES[others[generator.integers(len(others))]]
        if options["instruction"] not in sentences:
            raise ValueError(f"instruction={options['instruction']!r} is not one of {', '.join(sentences)}")
        self.instruction, self._render_every = sentences[options["instruction"]], options["render_every"]
        self._steps = self._successes = 0
        return self._observe(), self._info()

    def step(self, action: np.ndarray):
        self._values, reward, _, _, info = self._scene.simulation.step(np.clip(action, -1, 1))
        self._steps += 1
        self._successes += bool(info["success"])
        enough = STEPS_AFTER_SUCCESS if self._demonstrates else 1
        return self._observe(), float(reward), self._successes >= enough, False, self._info()

    def expert_action(self) -> np.ndarray:
        """What Meta-World's scripted policy does in the present state, float32 (4,). It sees where objects and goals are."""
        with warnings.catch_warnings(action="ignore"):  # some of the policies divide by zero, or name deprecated functions
            return np.clip(self._expert.get_action(self._values), -1, 1).astype(np.float32)

    def close(self) -> None:
        if self._scene is not None:
            self._scene.cameras.close()
            self._scene = None

    def render(self) -> np.ndarray:
        """The camera's image, uint8 (image_size, image_size, 3)."""
        image = self._scene.cameras.image(self._scene.simulation.data, CAMERA)
        return np.ascontiguousarray(image[::-1, ::-1])  # this camera is mounted upside down

    def _observe(self) -> dict[str, Any]:
        if self._steps % self._render_every == 0:
            self._image = self.render()
        state = np.clip(self._values[:4], self.observation_space["state"].low, self.observation_space["state"].high)
        return {"images": {CAMERA: self._image}, "state": state.astype(np.float32), "instruction": self.instruction}

    def _info(self) -> dict[str, Any]:
        return {"success": self._successes > 0, "task": self._name}


class Scene(NamedTuple):
    """A task: its simulation, its cameras, and the class of its expert."""

    name: str
    simulation: Any
    cameras: Cameras
    expert: Any

    def reset(self, seed: int) -> np.ndarray:
        """The simulation's 39 values at the start of an episode."""
        from mujoco import mj_forward

        self.simulation.seed(seed)
        values, _ = self.simulation.reset()
        mj_forward(self.simulation.model, self.simulation.data)  # else the first image shows another goal
        return values


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
    cameras = Cameras(simulation.model, size=size, render=render, crop=crop, **DRAWING)
    return Scene(name, simulation, cameras, ENV_POLICY_MAP[version])
