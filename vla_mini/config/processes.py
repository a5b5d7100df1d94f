"""One command in several processes: Lightning starts it again for each further device, with LOCAL_RANK in its environment.

What they have to know of the first one is handed over there, too: the run's folder, whose name holds the time.
"""

import os
import sys
from collections.abc import Sequence
from typing import Any

RUN_DIR = "VLA_MINI_RUN_DIR"


def rank() -> int:
    """Which of a run's processes this is: 0 is the one that the user started."""
    return int(os.environ.get("LOCAL_RANK", 0)) if RUN_DIR in os.environ else 0


def check_processes(cfg: Any, arguments: Sequence[str]) -> None:
    """ValueError where this command, given `arguments`, cannot be started again for each of the devices that `cfg` names."""
    if "trainer" not in cfg:
        return
    if "LOCAL_RANK" in os.environ and RUN_DIR not in os.environ:  # all would begin at once, and collect
        raise ValueError(
            f"LOCAL_RANK={os.environ['LOCAL_RANK']} is set, as by torchrun: start this by python alone; "
            "trainer.devices=N starts the other processes"
        )
    if cfg.trainer.devices > 1 and list(arguments) != sys.argv[1:]:
        raise ValueError(f"trainer.devices={cfg.trainer.devices} is for the command line: it starts {sys.argv[0]} again")
