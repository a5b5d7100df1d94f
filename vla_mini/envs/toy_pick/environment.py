"""toy_pick as an `Environment`: an instruction, a 64x64 image and the gripper's state -> dx, dy, dz, close.

The task is to pick up the object that the instruction names, in at most 48 steps. Lifting another object ends the episode as a
failure.
"""

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from vla_mini.envs.seeds import PURPOSES, episode_generator
from vla_mini.envs.spec import OPTIONS, Environment, observation_space
from vla_mini.envs.toy_pick.drawing import draw_gripper, draw_object, draw_table, object_mask
from vla_mini.envs.toy_pick.scene import sample_scene, swap_target
from vla_mini.envs.toy_pick.spec import SPEC

# How far one step moves, in table units (x, y), height and closedness.
STEP = np.array([0.12, 0.12, 0.2], np.float64)
CLOSING = 0.5
GRASP_RADIUS = 0.13  # the jaws must close this near to an object's centre ...
GRASP_HEIGHT = 0.15  # ... and this low
LIFTED = 0.5  # an object held this high counts as picked up
CHOICES = {"purpose": PURPOSES, "split": (*SPEC.splits, *SPEC.further_splits), "instruction": ("named", *SPEC.checks)}


class ToyPick(Environment):
    """The task of the module's docstring, fully determined by `reset(seed=EPISODE, options=OPTIONS)`.

    Its option `instruction` is "named", "swapped" (another object of the scene is named) or "blank" (it is empty). Without a
    seed, `reset` draws the number of the next episode from the generator of the last seed.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": SPEC.features.fps}
    env_spec = SPEC
    action_space = spaces.Box(-1.0, 1.0, (SPEC.features.action_size,), np.float32)
    observation_space = observation_space(SPEC.features, (-1, -1, 0, 0), 1, ["abcdefghijklmnopqrstuvwxyz "])

    def __init__(self, *, render_mode: str | None = "rgb_array"):
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        options = OPTIONS | (options or {})
        if unknown := sorted(options.keys() - OPTIONS.keys()):
            raise ValueError(f"reset option {unknown[0]!r} is not one of {', '.join(OPTIONS)}")
        for name, choices in CHOICES.items():
            if options[name] not in choices:
                raise ValueError(f"{name}={options[name]!r} is not one of {', '.join(choices)}")
        episode = int(self.np_random.integers(2**31)) if seed is None else seed
        key = options["purpose"], options["seed"], episode
        generator = episode_generator(*key)
        self.scene = sample_scene(generator, split=options["split"])
        self.original_target = self.scene.target
        if options["instruction"] == "swapped":
            self.scene = swap_target(self.scene, episode_generator(*key, stream=2))
        self.instruction = "" if options["instruction"] == "blank" else self.scene.instruction
        self.position, self.closedness = np.array(self.scene.gripper), 0.0  # x, y, height
        self.object_positions = np.array([(item.x, item.y) for item in self.scene.objects])
        self._table = draw_table(generator)
        self._hold(None)
        return self.observe(), self._info()

    def step(self, action: np.ndarray):
        action = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        self.position = np.clip(self.position + STEP * action[:3], [-1, -1, 0], 1)
        closing = np.clip((action[3] + 1) / 2 - self.closedness, -CLOSING, CLOSING)
        was_open, self.closedness = self.closedness <= 0.75, float(self.closedness + closing)
        if self.held is not None:
            self.object_positions[self.held] = self.position[:2]
            if self.closedness < 0.5:
                self._hold(None)
        elif was_open and self.closedness > 0.75 and self.position[2] <= GRASP_HEIGHT:
            distances = np.linalg.norm(self.object_positions - self.position[:2], axis=1)
            nearest = int(distances.argmin())
            if distances[nearest] <= GRASP_RADIUS:
                self._hold(nearest)
        info = self._info()
        return self.observe(), float(info["success"]), info["success"] or info["wrong_object"], False, info

    def expert_action(self) -> np.ndarray:
        """What the scripted expert does in the present state, float32 (4,). It has no memory, so it recovers from any state."""
        target, height = self.scene.target, self.position[2]
        if self.held is not None:  # lift the target, but release another object
            return np.array([0, 0, 1, 1] if self.held == target else [0, 0, 0, -1], np.float32)
        offset = self.object_positions[target] - self.position[:2]
        distance = np.hypot(*offset)
        goal = 0.0 if distance < GRASP_RADIUS else 0.35  # travel above the other objects
        motion = np.clip(np.array([*offset, goal - height]) / STEP, -1, 1)
        ready = distance < 0.6 * GRASP_RADIUS and height < 0.7 * GRASP_HEIGHT and self.closedness < 0.75
        return np.array([*motion, 1 if ready else -1], np.float32)

    def render(self) -> np.ndarray:
        """The camera's image, uint8 (64, 64, 3)."""
        image = self._background.copy()
        x, y, height = self.position
        draw_gripper(image, x=x, y=y, height=height, closedness=self.closedness, shadow=True)
        if self.held is not None:
            draw_object(image, self.scene.objects[self.held], x=x, y=y, height=height)
        draw_gripper(image, x=x, y=y, height=height, closedness=self.closedness)
        return np.clip(image, 0, 255).astype(np.uint8)

    def object_masks(self) -> np.ndarray:
        """The pixels of each object at the start of the episode, bool (objects, 64, 64)."""
        return np.stack([object_mask(item) for item in self.scene.objects])

    def change_object(self, index: int, *, colour: str | None = None, position: tuple[float, float] | None = None) -> None:
        """Give an object another colour, of PAINTS or FURTHER_PAINTS, or another place: also one that no sampled scene has."""
        objects = list(self.scene.objects)
        objects[index] = objects[index]._replace(colour=colour or objects[index].colour)
        self.scene = self.scene._replace(objects=tuple(objects))
        if position is not None:
            self.object_positions[index] = position
        self._hold(self.held)

    def _hold(self, held: int | None) -> None:
        """Hold an object, or none. What lies on the table is drawn once, so that a step only adds the gripper and `held`."""
        self.held = held
        self._background = self._table.copy()
        for i, item in enumerate(self.scene.objects):
            if i != held:
                draw_object(self._background, item, x=self.object_positions[i, 0], y=self.object_positions[i, 1])

    def observe(self) -> dict[str, Any]:
        """What the last `reset` or `step` returned, or would after a change."""
        state = np.array([*self.position, self.closedness], np.float32)
        return {"images": {"top": self.render()}, "state": state, "instruction": self.instruction}

    def _info(self) -> dict[str, Any]:
        """`original_object`: whether the object was lifted that is named without `swapped` and `blank`; `chance`: how often a
        policy that lifts an object at random lifts that one; `target`: the index of the object that is to be lifted."""
        lifted = self.held if self.position[2] >= LIFTED else None
        return {
            "success": lifted == self.scene.target,
            "wrong_object": lifted not in (None, self.scene.target),
            "original_object": lifted == self.original_target,
            "target": self.scene.target,
            "two_words": self.scene.two_words,
            "chance": 1 / len(self.scene.objects),
        }
