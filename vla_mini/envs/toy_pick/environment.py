"""toy_pick as a Gymnasium environment: an instruction, a 64x64 image and the gripper's state -> dx, dy, dz, close.

Pick up the object that the instruction names, in at most 48 steps. Lifting any other object ends the episode as a failure.
"""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from vla_mini.envs.seeds import episode_generator
from vla_mini.envs.toy_pick.drawing import SIZE, draw_gripper, draw_shadow, draw_table, draw_thing, thing_mask
from vla_mini.envs.toy_pick.scene import SPLITS, SYNONYM_SPLITS, Scene, sample_scene, swap_target
from vla_mini.features import Features

# How far one step goes, in table units (x, y), height and closedness.
STEP = np.array([0.12, 0.12, 0.2], np.float64)
CLOSING = 0.5
GRASP_RADIUS = 0.13  # the jaws must close this near to an object's centre ...
GRASP_HEIGHT = 0.15  # ... and this low
LIFTED = 0.5  # an object held this high counts as picked up
OPTIONS = {"purpose": "evaluation", "seed": 0, "split": "seen", "instruction": "named"}


class ToyPick(gymnasium.Env):
    """The task of the module's docstring, fully determined by `reset(seed=EPISODE, options=OPTIONS)`.

    Options: `purpose` (whose scenes: demonstration, validation, selection, evaluation), `seed` (of the whole run), `split`
    (one of `splits` or `further_splits`) and `instruction` (named; swapped: another object of the scene is named; blank:
    nothing is said). Without a seed each reset draws the next episode from the generator of the last seed.
    """

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 10}
    robot_type = "toy_pick"
    splits = SPLITS
    further_splits = SYNONYM_SPLITS  # played where an evaluation asks for them
    grounding_checks = ("swapped", "blank")
    features = Features(
        cameras=("top",),
        image_size=(SIZE, SIZE),
        state=("x", "y", "height", "closed"),
        action=("dx", "dy", "dz", "close"),
        fps=10,
    )

    def __init__(self, *, render_mode: str | None = "rgb_array"):
        self.render_mode = render_mode
        letters = "abcdefghijklmnopqrstuvwxyz "
        self.observation_space = spaces.Dict(
            {
                "images": spaces.Dict({"top": spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)}),
                "state": spaces.Box(np.float32([-1, -1, 0, 0]), np.float32([1, 1, 1, 1])),
                "instruction": spaces.Text(min_length=0, max_length=128, charset=letters),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        options = OPTIONS | (options or {})
        if unknown := sorted(options.keys() - OPTIONS.keys()):
            raise ValueError(f"reset option {unknown[0]!r} is not one of {', '.join(OPTIONS)}")
        if options["instruction"] not in ("named", *self.grounding_checks):
            raise ValueError(f"instruction={options['instruction']!r} is not one of named, swapped, blank")
        episode = int(self.np_random.integers(2**31)) if seed is None else seed
        key = options["purpose"], options["seed"], episode
        generator = episode_generator(*key)
        scene = sample_scene(generator, split=options["split"])
        self.original_target = scene.target
        if options["instruction"] == "swapped":
            scene = swap_target(scene, episode_generator(*key, stream=2))
        self.instruction = "" if options["instruction"] == "blank" else scene.instruction
        self._begin(scene, generator)
        return self._observe(), self._info()

    def _begin(self, scene: Scene, generator: np.random.Generator) -> None:
        self.scene = scene
        self.position = np.array(scene.gripper)  # x, y, height
        self.closedness = 0.0
        self.places = np.array([(thing.x, thing.y) for thing in scene.things])
        self.held: int | None = None
        self._table = draw_table(generator)
        self._redraw_things()

    def step(self, action: np.ndarray):
        action = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        self.position = np.clip(self.position + STEP * action[:3], [-1, -1, 0], 1)
        closing = np.clip((action[3] + 1) / 2 - self.closedness, -CLOSING, CLOSING)
        was_open, self.closedness = self.closedness <= 0.75, float(self.closedness + closing)
        if self.held is not None:
            self.places[self.held] = self.position[:2]
            if self.closedness < 0.5:
                self.held = None
                self._redraw_things()
        elif was_open and self.closedness > 0.75:
            self._grasp()
        info = self._info()
        terminated = info["lifted"] >= 0
        return self._observe(), float(info["success"]), terminated, False, info

    def expert_action(self) -> np.ndarray:
        """What the scripted expert does in the present state, float32 (4,). It has no memory, so it recovers by itself."""
        target = self.scene.target
        if self.held == target:
            return np.array([0, 0, 1, 1], np.float32)
        offset = self.places[target] - self.position[:2]
        distance = float(np.hypot(*offset))
        height = self.position[2]
        if self.held is not None:  # the wrong thing: let go of it
            return np.array([0, 0, 0, -1], np.float32)
        above = distance < GRASP_RADIUS
        ready = distance < 0.6 * GRASP_RADIUS and height < 0.7 * GRASP_HEIGHT
        goal = 0.0 if above else 0.35  # travel above the other things
        motion = np.clip(np.array([*offset, goal - height]) / STEP, -1, 1)
        return np.array([*motion, 1.0 if ready and self.closedness < 0.75 else -1.0], np.float32)

    def render(self) -> np.ndarray:
        """The camera's image, uint8 (64, 64, 3)."""
        image = self._things.copy()
        x, y, height = self.position
        draw_shadow(image, x=x, y=y, height=height, closedness=self.closedness)
        if self.held is not None:
            draw_thing(image, self.scene.things[self.held], x=x, y=y, height=height)
        draw_gripper(image, x=x, y=y, height=height, closedness=self.closedness)
        return np.clip(image, 0, 255).astype(np.uint8)

    def object_masks(self) -> np.ndarray:
        """Which pixels each object covers where it lay at the start, bool (objects, 64, 64)."""
        return np.stack([thing_mask(thing) for thing in self.scene.things])

    def _grasp(self) -> None:
        if self.position[2] > GRASP_HEIGHT:
            return
        distances = np.linalg.norm(self.places - self.position[:2], axis=1)
        nearest = int(distances.argmin())
        if distances[nearest] <= GRASP_RADIUS:
            self.held = nearest
            self._redraw_things()

    def _redraw_things(self) -> None:
        """Paint what lies on the table once; a step then only adds the gripper and what it holds."""
        self._things = self._table.copy()
        for i, thing in enumerate(self.scene.things):
            if i != self.held:
                draw_thing(self._things, thing, x=self.places[i, 0], y=self.places[i, 1])

    def _observe(self) -> dict[str, Any]:
        state = np.array([*self.position, self.closedness], np.float32)
        return {"images": {"top": self.render()}, "state": state, "instruction": self.instruction}

    def _info(self) -> dict[str, Any]:
        lifted = self.held if self.held is not None and self.position[2] >= LIFTED else -1
        return {
            "success": lifted == self.scene.target,
            "wrong_object": lifted >= 0 and lifted != self.scene.target,
            "lifted": lifted,
            "target": self.scene.target,
            "original_target": self.original_target,
            "two_words": self.scene.two_words,
            "num_objects": len(self.scene.things),
        }
