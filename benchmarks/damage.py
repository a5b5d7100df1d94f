"""Damage files at random, and count those that are loaded without a warning or an error, of which there have to be none.

    python benchmarks/damage.py [trials=1000] [seed=0] [output=benchmarks/results/damage.json]

A run of toy_pick_smoke and a recording by another program (LeRobot v2.1, an H.264 video an episode) are made in a temporary
folder. In each trial one of their files (of a checkpoint, a policy, a dataset, its decoded frames, or the recording) gets one
bit flipped, is cut short, or is swapped with another one beside it; then it is loaded. Where all is as before, the damage did
no harm: it was where nothing is read. A recording's videos and tables have no checksums: nothing tells that a bit of a picture
or of a number is another one, and these are counted for themselves.
"""

import hashlib
import os
import random
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks._machine import print_table, read_arguments, save
from tests.data.recordings import record

ROOT = Path(__file__).parents[1]
# Outcome -> part of the warning.
WARNINGS = {"the one before": "resuming from the one before", "decoded again": "decoded again"}
LOADED = {"run/checkpoints": "step_000004"}
KINDS = ("flipped bit", "cut short", "swapped")


def main() -> None:
    arguments = read_arguments(trials=1000, seed=0, output="benchmarks/results/damage.json")
    with TemporaryDirectory() as temporary:
        make_run(Path(temporary))
        outcomes = damage(Path(temporary), trials=arguments["trials"], seed=arguments["seed"])
    silent = sum(count for (_, _, outcome), count in outcomes.items() if outcome == "silent")
    rows = [(what, kind, outcome, count) for (what, kind, outcome), count in sorted(outcomes.items())]
    print_table(rows, header=("what", "damage", "outcome", "trials"))
    print(f"{silent} of {arguments['trials']} damaged files were loaded with other content, silently")
    figures = [dict(zip(("what", "damage", "outcome", "trials"), row, strict=True)) for row in rows]
    save({"trials": arguments["trials"], "silent": silent, "outcomes": figures}, arguments["output"])


def make_run(folder: Path) -> None:
    """Run the smoke experiment, with its dataset in `folder`/data and its results in `folder`/run."""
    settings = ["experiment=toy_pick_smoke", f"data.root={folder}/data", f"hydra.run.dir={folder}/run"]
    subprocess.run([sys.executable, "scripts/train.py", *settings], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    make_recording(folder)


def make_recording(folder: Path) -> None:
    """Write the recording of another program, to `folder`/other/recording."""
    record(folder / "other/recording", version="v2.1", video="libx264", lengths=(30, 40, 25), size=(64, 96))


def damage(folder: Path, *, trials: int, seed: int) -> Counter[tuple[str, str, str]]:
    """(what, kind of damage, outcome) -> how often; the outcome is "refused", one of WARNINGS, or "silent"."""
    (cache,) = (folder / ".cache").glob("[!.]*.u8")
    cache.with_name("other.u8").write_bytes(cache.read_bytes()[::-1])  # of another dataset of the same size
    generator = random.Random(seed)
    outcomes: Counter[tuple[str, str, str]] = Counter()
    intact = {what: load(folder / what) for what, load in LOADERS.items()}
    for trial in range(trials):
        what, load = list(LOADERS.items())[trial % len(LOADERS)]
        kind = KINDS[trial // len(LOADERS) % len(KINDS)]
        root = folder / what
        paths = [path for path in sorted(root.rglob("[!.]*")) if path.is_file() and path.name != "last.ckpt"]
        # Older checkpoints are not loaded as long as the newest is intact, nor are another dataset's frames.
        loaded = [path for path in paths if path.name.startswith(LOADED.get(what, "")) and path.name != "other.u8"]
        path = generator.choice(loaded)
        others = [other for other in paths if other.suffix == path.suffix and other.read_bytes() != path.read_bytes()]
        other = generator.choice(others) if kind == "swapped" and others else None
        before = {file: file.read_bytes() for file in (path, other) if file is not None}
        times = {file: file.stat().st_mtime_ns for file in before}
        _damage_file(path, other, kind, generator)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = load(root)
                messages = " ".join(str(warning.message) for warning in caught)
                outcome = next((name for name, words in WARNINGS.items() if words in messages), "silent")
                outcome = "no harm" if outcome == "silent" and found == intact[what] else outcome
            except ValueError:
                outcome = "refused"
        for file, content in before.items():
            file.write_bytes(content)
            os.utime(file, ns=(times[file], times[file]))
        if what == "other/recording" and outcome == "silent":
            outcome = f"another {path.suffix}"
        outcomes[what, kind if other or kind != "swapped" else "flipped bit", outcome] += 1
    return outcomes


def _damage_file(path: Path, other: Path | None, kind: str, generator: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if kind == "cut short":
        path.write_bytes(content[: generator.randrange(len(content))])
    elif other is not None:
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    else:
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)


def load_checkpoint(folder: Path) -> None:
    from vla_mini.training.checkpoints import newest_good

    newest_good(folder)


def load_policy(folder: Path) -> None:
    from vla_mini import Policy

    Policy.from_pretrained(folder)


def load_dataset(folder: Path) -> str:
    """A checksum of all that is read."""
    from vla_mini.data.lerobot.videos import read_index
    from vla_mini.data.reader import read_dataset

    read_index.cache_clear()
    data = read_dataset(folder)
    digest = hashlib.sha256(repr((data.features, data.tasks, data.splits)).encode())
    for values in (data.states, data.actions, data.frames, data.task_index):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def load_frames(folder: Path) -> str:
    return load_dataset(folder.parent / "data")


LOADERS: dict[str, Callable[[Path], str | None]] = {
    "run/checkpoints": load_checkpoint,
    "run/policy": load_policy,
    "data": load_dataset,
    ".cache": load_frames,
    "other/recording": load_dataset,
}


if __name__ == "__main__":
    main()
