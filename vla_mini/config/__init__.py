"""Compose, check, run: from a command line and configs/*.yaml to a checked, resolved, read-only config.

    argv --quoting--> Hydra's compose API --check against schemas and constructor signatures--> main(cfg) --> exit code

The only user of Hydra. `@config.main("train")` decorates the `main(cfg)` of scripts/train.py; `config.load` gives the
same config to a test or a notebook. Nothing is built and nothing is written before the whole config was checked.
"""

from vla_mini.config.command import load, main, run
from vla_mini.config.folders import default_output, new_folder, point_latest, run_folder, start_work
from vla_mini.config.processes import rank

__all__ = ["default_output", "load", "main", "new_folder", "point_latest", "rank", "run", "run_folder", "start_work"]
