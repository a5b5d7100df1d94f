"""From a command line and configs/*.yaml to typed, frozen settings, and from a script to its exit code.

    arguments ──compose (Hydra)──▶ plain dict ──validate (vla_mini/settings.py)──▶ settings ──main(settings)──▶ exit code

`@config.main("train")` decorates the `main(settings)` of scripts/train.py; `config.load` gives the same settings to a test or
a notebook. Nothing is built and nothing is written before all settings were validated.
"""

from vla_mini.commands.processes import announce, rank
from vla_mini.config.command import is_given, load, main, run
from vla_mini.config.folders import default_output, new_folder, point_latest, run_folder, start_work

__all__ = [
    "announce",
    "default_output",
    "is_given",
    "load",
    "main",
    "new_folder",
    "point_latest",
    "rank",
    "run",
    "run_folder",
    "start_work",
]
