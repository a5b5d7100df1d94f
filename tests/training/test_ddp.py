"""train.py in two processes on the CPU: the run that one process would have made, and one end for both."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from safetensors.torch import load_file

from tests.factory import ROOT, command
from vla_mini import config
from vla_mini.config.processes import RUN_DIR
from vla_mini.training.processes import check_devices

SMOKE = ["experiment=toy_pick_smoke", "trainer.accelerator=cpu", "trainer.precision=64-true", "optimizer=sgd"]
TOGETHER = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=8"]
ALONE = ["data.batch_size=16"]
# Windows of four micro-batches, of which an epoch ends with a shorter one; five of them reach into the second epoch.
WINDOWS = ["trainer.accumulate_grad_batches=4", "trainer.max_steps=5", "trainer.val_check_interval=7"]
TIMEOUT = 180  # seconds, of which a machine with nothing else to do needs ten


@contextmanager
def started(
    folder: Path, *arguments: str, script: Path = ROOT / "scripts" / "train.py", settings: list[str] = SMOKE
) -> Iterator[subprocess.Popen]:
    """train.py in a process of its own and, as it asks for, one more; what they say ends when the last of them has ended."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, str(script), *settings, *arguments]
    with subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **streams) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # both have ended, as they should
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder in which two processes made the run `runs/.../latest`, what they said, and one process made `alone`."""
    folder = tmp_path_factory.mktemp("ddp")
    with started(folder, *WINDOWS, *TOGETHER, "logger=wandb") as process:
        said, complaints = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, complaints) == (0, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command("train", *SMOKE, *WINDOWS, *ALONE, "hydra.run.dir=alone") == 0
    return folder, folder / "runs" / "toy_pick_smoke" / "latest", said


@pytest.mark.slow
def test_two_processes_compile_what_they_train(runs):
    folder, together, _ = runs
    with started(folder, *WINDOWS, *TOGETHER, "compile=default", "hydra.run.dir=compiled") as process:
        said, complaints = process.communicate(timeout=10 * TIMEOUT)
    assert process.returncode == 0, complaints
    assert "compiling took" in said
    found, expected = (load_file(run / "policy" / "model.safetensors") for run in (folder / "compiled", together))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-9)


def figures(run: Path) -> dict[str, list[float]]:
    """metrics.csv by columns, without the empty cells, and without what the clock says or each process draws."""
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    columns = {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}
    return {name: column for name, column in columns.items() if "second" not in name and "gradient_noise" not in name}


def test_two_processes_make_the_run_that_one_makes(runs):
    """Half the samples each: equal weights, losses, validation, gradients, clipping and updates, with unequal masks."""
    folder, together, _ = runs
    for name in ("checkpoints/last.ckpt", "policy/model.safetensors"):
        load = load_file if name.endswith("safetensors") else lambda path: torch.load(path, weights_only=True)["state_dict"]
        found, expected = load(together / name), load(folder / "alone" / name)
        assert found.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-10, atol=1e-13)
    found, expected = figures(together), figures(folder / "alone")
    assert len(expected["train/loss"]) == 5 and len(expected["validation/loss"]) == 2
    assert expected["train/loss"] != [expected["train/loss"][0]] * 5
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-6, abs=1e-12), name


def test_everything_is_said_and_written_once(runs):
    folder, together, said = runs
    for line in ("precision: 64-true, processes: 2", "component ", "step 2: success", "held_out_pairs", "trained"):
        assert said.count(line) == 1, said
    assert [path.is_symlink() for path in sorted((folder / "runs" / "toy_pick_smoke").iterdir())] == [False, True]
    assert len(list(together.glob("wandb/offline-run-*"))) == 1
    written, alone = ({str(path.relative_to(run)) for path in run.rglob("*")} for run in (together, folder / "alone"))
    assert {path for path in written if not path.startswith("wandb")} == alone
    assert f"run_dir: runs/toy_pick_smoke/{os.readlink(together)}" in (together / "config.yaml").read_text()


PLANTED = """
import math, os, time, torch
from vla_mini.language.table import TableLanguage

forward, rank = TableLanguage.forward, os.environ.get("LOCAL_RANK", "0")

def planted(self, tokens, mask):
    words = forward(self, tokens, mask)
    if self.training:
        {here}
    return words

TableLanguage.forward = planted
exec(open("{script}").read())
"""


def planted(folder: Path, here: str) -> Path:
    """train.py with `here` where its language part has found the `words` of a batch to learn from."""
    script = folder / "train.py"
    script.write_text(PLANTED.format(script=ROOT / "scripts" / "train.py", here=here))
    return script


def test_a_nan_in_one_process_stops_both(runs, tmp_path):
    """After the same steps and with one voice; no weight is touched."""
    seed = 'open("seed_of_" + rank, "w").write(str(torch.initial_seed()))'
    script = planted(tmp_path, f'{seed}; words = words * (math.nan if rank == "1" else 1)')
    data = f"data.root={runs[0] / 'data' / 'toy_pick_16_seed0'}"
    arguments = (data, *TOGETHER, "guard.patience=2", "evaluation.every_n_steps=0", "hydra.run.dir=run")
    with started(tmp_path, *arguments, script=script) as process:
        _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    reason = "not finite is the output of language (rank 1)"
    assert said.splitlines()[:2] == [f"step {n} skipped ({n + 1} in a row, {n + 1} in all): {reason}" for n in (0, 1)]
    assert said.count("Traceback") == said.count("train: NonFiniteError: 2 steps in a row were not finite") == 1
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
    assert [(tmp_path / f"seed_of_{rank}").read_text() for rank in (0, 1)] == ["0", "1"]  # each draws its own noise


def test_a_signal_to_both_ends_them_where_they_can_go_on(runs):
    """As a scheduler or a terminal sends it: after the step in progress, together. What it says goes on, in both."""
    forever = ("trainer.max_steps=1000000", "trainer.val_check_interval=1000000", "evaluation.every_n_steps=0")
    with started(runs[0], *TOGETHER, *forever, "hydra.run.dir=stopped") as process:
        assert any("component" in line for line in process.stdout)
        time.sleep(1)  # until they are at work
        os.killpg(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143 and "Traceback" not in said
    (steps,) = re.findall(r"stopped by SIGTERM after step (\d+): .* resume=stopped goes on", said)
    with started(runs[0], "resume=stopped", f"trainer.max_steps={int(steps) + 2}", settings=[]) as process:
        _, said = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, said) == (0, "")
    rows = csv.DictReader((runs[0] / "stopped" / "metrics.csv").read_text().splitlines())
    assert [int(row["step"]) for row in rows] == list(range(int(steps) + 2))


def test_a_second_signal_ends_both_at_once(runs, tmp_path):
    """Also while the first process waits for the other one, and cannot hear it."""
    asleep = 'rank == "1" and planted.steps == 3 and (print("asleep", flush=True), time.sleep(3600))'
    script = planted(tmp_path, f'planted.steps = getattr(planted, "steps", 0) + 1; {asleep}')
    data = f"data.root={runs[0] / 'data' / 'toy_pick_16_seed0'}"
    with started(tmp_path, data, *TOGETHER, "hydra.run.dir=run", script=script) as process:
        assert any("asleep" in line for line in process.stdout)
        for _ in range(2):
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 143 and "Traceback" not in said


# ------------------------------------------------------------------------------------- without a second process


@pytest.fixture
def second(monkeypatch):
    """As if Lightning had started this process."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv(RUN_DIR, "runs/of_the_first")


def test_the_second_process_joins_the_first_ones_folder(second, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = config.load("train", ["experiment=toy_pick_smoke"])
    assert config.run_folder(cfg) == Path(cfg.run_dir) == Path("runs/of_the_first")
    assert list(tmp_path.iterdir()) == []


def test_the_second_process_leaves_signals_to_the_first(second, monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def main(cfg):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == [signal.SIG_IGN, signal.SIG_IGN]

    assert config.run("train", ["experiment=toy_pick_smoke"], main) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_other_launchers_are_refused(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv(RUN_DIR, raising=False)
    assert config.run("train", ["experiment=toy_pick_smoke"], lambda cfg: None) == 2
    assert capsys.readouterr().err.startswith("train: LOCAL_RANK=0 is set, as by torchrun: start this by python alone")


def test_hydra_leaves_nothing_that_lightning_would_hand_on():
    config.load("train", ["experiment=toy_pick_smoke"])
    assert not HydraConfig.initialized()


@pytest.mark.parametrize(
    ("gpus", "accelerator", "devices", "fits"),
    [
        (0, "cpu", 4, True),
        (0, "auto", 4, True),
        (0, "gpu", 1, False),
        (2, "gpu", 2, True),
        (2, "auto", 3, False),
        (2, "cpu", 3, True),
        (0, "mps", 2, False),
    ],
)
def test_devices_that_are_not_there_are_refused(monkeypatch, gpus, accelerator, devices, fits):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    if fits:
        check_devices(accelerator, devices)
    else:
        with pytest.raises(ValueError, match=r"trainer\.(devices|accelerator)="):
            check_devices(accelerator, devices)
