"""A scripted expert for LIBERO's pick-and-place tasks: it grasps the object and puts it where the goal says."""

from collections.abc import Iterator
from typing import Any

import numpy as np

OPEN, CLOSED = -1.0, 1.0
GAIN, TURN_GAIN = 16.0, 1.2  # of the action by the distance in metres, and by the angle in radians
ABOVE, LIFT = 0.12, 0.22  # metres
CLOSING_STEPS, OPENING_STEPS = 12, 25
HELD_WITHIN, YAW_WITHIN = 0.1, 0.08  # metres between the hand and an object that it holds; radians
SAME_WIDTH = 0.004  # metres: a round object has no narrow side, only some by chance
UP = np.array([0.0, 0.0, 1.0])


class PickAndPlace:
    """The expert of one episode.

    - simulation: LIBERO's, at the start of the episode
    - goal: predicates; the first object of the first is brought to its second one

    Raises ValueError, at the first action, for a goal of another kind.
    """

    def __init__(self, simulation: Any, goal: list[list[str]]) -> None:
        self._simulation, self._goal = simulation, goal
        self._actions = self._plan()

    def action(self, values: dict[str, np.ndarray]) -> np.ndarray:
        """The next one, float32 (7,), in the state that LIBERO's observation `values` describes."""
        self._hand = values["robot0_eef_pos"]
        x, y, z, w = values["robot0_eef_quat"]
        self._yaw = np.arctan2(1 - 2 * (x * x + z * z), 2 * (x * y - z * w))  # of the axis along which the fingers close
        return next(self._actions)

    def _plan(self) -> Iterator[np.ndarray]:
        """Actions without end: it begins again wherever the object slipped from the hand."""
        if len(self._goal) != 1 or len(self._goal[0]) != 3:
            raise ValueError(f"the expert only picks and places one object, but the goal is {self._goal}")
        _, moved, place = self._goal[0]
        place = next(name for name in self._simulation.env.obj_body_id if place.startswith(name))
        drop = UP * (0.02 if "bowl" in moved else 0.10)
        while True:
            grasp, yaw = self._grasp(moved)
            yield from self._move(grasp + ABOVE * UP, OPEN, yaw=yaw, within=0.01, steps=60)
            yield from self._move(grasp, OPEN, yaw=yaw, within=0.008, steps=40)
            for _ in range(CLOSING_STEPS):
                yield self._toward(grasp, CLOSED, yaw)
            top = self._hand + LIFT * UP
            yield from self._move(top, CLOSED, within=0.02, steps=40)
            offset = self._position(moved) - self._hand
            if np.abs(offset).max() > HELD_WITHIN:
                continue
            target = self._position(place) - offset
            over = np.array([*target[:2], top[2]])
            yield from self._move(over, CLOSED, within=0.012, steps=70)
            yield from self._move(target + drop, CLOSED, within=0.01, steps=40)
            for _ in range(OPENING_STEPS):
                yield self._toward(target + drop, OPEN)
            yield from self._move(over, OPEN, within=0.02, steps=20)

    def _grasp(self, name: str) -> tuple[np.ndarray, float]:
        """Where to close the fingers, (3,), and the angle of the axis along which they close: the object's narrow side, or of
        several the one that takes the least turn."""
        corners = self._corners(name)
        low, high = corners.min(axis=0), corners.max(axis=0)
        angles = np.linspace(-np.pi / 2, np.pi / 2, 37)
        widths = np.ptp(corners[:, :2] @ np.stack([np.cos(angles), np.sin(angles)]), axis=0)
        middle = (low + high) / 2
        if "bowl" in name:  # by its rim
            return np.array([middle[0], high[1] - 0.008, high[2] - 0.025]), np.pi / 2
        narrow = angles[widths < widths.min() + SAME_WIDTH]
        return np.array([*middle[:2], max(low[2] + 0.015, high[2] - 0.035)]), narrow[np.abs(self._turn(narrow)).argmin()]

    def _move(
        self, target: np.ndarray, grip: float, *, within: float, steps: int, yaw: float | None = None
    ) -> Iterator[np.ndarray]:
        """Actions until the hand is there, or for so many steps."""
        for _ in range(steps):
            if np.abs(target - self._hand).max() < within and (yaw is None or abs(self._turn(yaw)) < YAW_WITHIN):
                return
            yield self._toward(target, grip, yaw)

    def _turn(self, yaw: float | np.ndarray) -> float | np.ndarray:
        """Radians from the hand's angle to this one; an axis is the same after half a turn."""
        return (yaw - self._yaw + np.pi / 2) % np.pi - np.pi / 2

    def _toward(self, target: np.ndarray, grip: float, yaw: float | None = None) -> np.ndarray:
        action = np.zeros(7, np.float32)
        action[:3] = np.clip(GAIN * (target - self._hand), -1, 1)
        action[5] = 0 if yaw is None else np.clip(TURN_GAIN * self._turn(yaw), -1, 1)
        action[6] = grip
        return action

    def _position(self, name: str) -> np.ndarray:
        return self._simulation.sim.data._data.xpos[self._simulation.env.obj_body_id[name]].copy()

    def _corners(self, name: str) -> np.ndarray:
        """The corners of the boxes around the shapes for collisions of an object, (n, 3), in the world."""
        model, data = self._simulation.sim.model._model, self._simulation.sim.data._data
        body, unit = self._simulation.env.obj_body_id[name], np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T
        parts = (model.body_rootid[model.geom_bodyid] == model.body_rootid[body]) & (model.geom_contype > 0)
        boxes = []
        for geom in np.flatnonzero(parts):
            center, half = model.geom_aabb[geom].reshape(2, 3)
            boxes.append((unit * half + center) @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
        return np.concatenate(boxes)
