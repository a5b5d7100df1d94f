"""LIBERO's suites of tasks (Liu et al. 2023), read from its package: names, sentences, scenes, goals, stored initial states."""

import contextlib
import functools
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

# name -> LIBERO's benchmark, which of its tasks, and how many steps an episode has at most, as in LeRobot's evaluation.
SUITES = {
    "libero_spatial": ("libero_spatial", range(10), 280),
    "libero_object": ("libero_object", range(10), 280),
    "libero_goal": ("libero_goal", range(10), 300),
    "libero_90": ("libero_90", range(90), 400),
    "libero_living_room": ("libero_90", range(46, 60), 400),  # all pick-and-place tasks of living rooms 1 to 3
}


def env_id(suite: str) -> str:
    """ "libero_living_room" -> "vla_mini/LiberoLivingRoom-v0"."""
    return f"vla_mini/{suite.title().replace('_', '')}-v0"


class Task(NamedTuple):
    """A task, as its BDDL file says.

    - scene: the same text for tasks with the same objects, fixtures and placements
    - goal: predicates such as ("in", "butter_1", "basket_1_contain_region"), all of which are to hold
    - initial_states: those that LIBERO has stored, (50, n)
    """

    name: str
    sentence: str
    file: Path
    scene: str
    goal: list[list[str]]
    initial_states: np.ndarray


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """LIBERO and robosuite print what they do; robosuite also warns of settings that it has none of."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.ExitStack() as at_end:
        at_end.callback(logging.disable, logging.NOTSET)
        logging.disable(logging.WARNING)
        yield


@functools.cache
def load_tasks(suite: str) -> tuple[Task, ...]:
    """The tasks of one of SUITES. ValueError where a package or a library is missing."""
    from vla_mini.envs.mujoco import import_mujoco  # not at the top: it imports Pillow

    import_mujoco(extra="libero")
    with quiet():
        from libero.libero import benchmark, get_libero_path
        from libero.libero.envs.bddl_utils import robosuite_parse_problem

        name, numbers, _ = SUITES[suite]
        tasks, source = [], benchmark.get_benchmark(name)()
        for number in numbers:
            task = source.get_task(number)
            file = Path(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)
            problem = robosuite_parse_problem(str(file))
            scene = json.dumps([problem[key] for key in ("problem_name", "fixtures", "objects", "regions", "initial_state")])
            states = source.get_task_init_states(number)
            tasks.append(Task(task.name, task.language, file, scene, problem["goal_state"], states))
    return tuple(tasks)
