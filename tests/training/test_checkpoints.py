"""Checkpoints that never lie: what is damaged is named and passed over, and what fails to be written harms nothing."""

import re
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import damage
from tests.factory import ROOT, command
from vla_mini import files
from vla_mini.training.checkpoints import WholeFiles, newest_good, numbered

TRIALS = 50


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of the smoke experiment, as the benchmark makes it."""
    place = tmp_path_factory.mktemp("place")
    assert command("train", "experiment=toy_pick_smoke", f"data.root={place}/data", f"hydra.run.dir={place}/run") == 0
    return place


def test_nothing_damaged_is_loaded_silently(place):
    outcomes = damage.damage(place, trials=TRIALS, seed=0)
    assert sum(outcomes.values()) == TRIALS and {what for what, _, _ in outcomes} == set(damage.LOADERS)
    assert not [found for found in outcomes if found[2] == "silent"]
    for load, what in ((load, what) for what, load in damage.LOADERS.items()):
        load(place / what)  # and whole again, all is well


@pytest.fixture
def checkpoints(tmp_path):
    for step in (1, 2, 3):
        WholeFiles().save_checkpoint(
            {"global_step": step, "state_dict": {"x": torch.zeros(step)}}, tmp_path / f"step_{step:06d}.ckpt"
        )
    return tmp_path


@pytest.mark.parametrize("fault", ["damaged", "not finished", "no checkpoint", "the one of step 2"])
def test_the_one_before_is_taken_and_the_bad_one_named(checkpoints, fault):
    newest, before = (path for _, path in numbered(checkpoints)[:2])
    if fault == "damaged":
        newest.write_bytes(newest.read_bytes()[:-1])
    elif fault == "not finished":
        newest.with_name(f"{newest.name}.sha256").unlink()
    else:
        newest.write_bytes(b"not a checkpoint" if fault == "no checkpoint" else before.read_bytes())
        newest.with_name(f"{newest.name}.sha256").write_text(f"{files.digest(newest)}  {newest.name}\n")
    with pytest.warns(UserWarning, match=f"step_000003.ckpt .*{fault}.*going back"):
        assert newest_good(checkpoints) == (2, before)


def test_without_a_good_one_it_is_said(checkpoints):
    for _, path in numbered(checkpoints):
        path.unlink()
    with pytest.raises(ValueError, match="holds no good checkpoint"):
        newest_good(checkpoints)


CALLED = []


def detonate(text):
    CALLED.append(text)


class Bomb:
    def __reduce__(self):
        return detonate, ("boom",)


def test_a_strangers_checkpoint_runs_no_code(checkpoints):
    WholeFiles().save_checkpoint({"global_step": 4, "bomb": Bomb()}, checkpoints / "step_000004.ckpt")
    torch.load(checkpoints / "step_000004.ckpt", weights_only=False)
    assert CALLED == ["boom"]  # it is one
    with pytest.warns(UserWarning, match="step_000004.ckpt is no checkpoint"):
        assert newest_good(checkpoints)[0] == 3
    with pytest.raises(Exception, match="Unsupported"):
        WholeFiles().load_checkpoint(checkpoints / "step_000004.ckpt", weights_only=False)
    assert CALLED == ["boom"]


def test_a_full_disk_harms_nothing(checkpoints):
    """The limit on a file's size stands for the disk's: writing fails half way."""
    before = {path.name: path.read_bytes() for path in checkpoints.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError):
            WholeFiles().save_checkpoint({"x": torch.zeros(100_000)}, checkpoints / "step_000004.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, heard)
    assert {path.name: path.read_bytes() for path in checkpoints.iterdir()} == before


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(OSError, match="gone"):
        WholeFiles().save_checkpoint({}, tmp_path / "gone" / "checkpoints" / "step_000001.ckpt")


def test_checksums_are_those_of_sha256sum(checkpoints):
    lines = "".join(path.read_text() for path in sorted(checkpoints.glob("*.sha256")))
    (checkpoints / "all").write_text(lines)
    subprocess.run(["sha256sum", "--check", "--quiet", "all"], cwd=checkpoints, check=True)


# ---- the command, stopped in every way


SLOWLY = ["experiment=toy_pick_smoke", "trainer.max_steps=12", "checkpoint.every_n_steps=2", "evaluation.every_n_steps=5"]


def start(*arguments):
    script = [sys.executable, "scripts/train.py", *arguments]
    return subprocess.Popen(script, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def written(run):
    """The steps of all checkpoints in the folder, the one being written included."""
    return [re.findall(r"step_(\d+)", path.name) for path in run.glob("checkpoints/*step_*")]


def wait_for(condition, child, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline and child.poll() is None, child.communicate()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(place):
    """What the run is that nobody stops: the checksum of its policy."""
    run = place / "whole"
    assert command("train", *SLOWLY, f"data.root={place}/data", f"hydra.run.dir={run}") == 0
    return files.digest(run / "policy" / "model.safetensors")


def test_killed_and_resumed_until_it_is_done(place, whole):
    run = place / "killed"
    arguments = [*SLOWLY, f"data.root={place}/data", f"hydra.run.dir={run}"]
    for step in (4, 8):  # as soon as a checkpoint of that step, or a later one, begins to be written: one before it is whole
        child = start(*arguments)
        wait_for(lambda step=step: any(int(found[0]) >= step for found in written(run)), child)
        child.kill()
        child.communicate()
        arguments = [f"resume={run}"]
    child = start(*arguments)
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert "success" in out.splitlines()[-1]
    assert files.digest(run / "policy" / "model.safetensors") == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_where_it_can_go_on(place, whole, number):
    run = place / number.name
    child = start(*SLOWLY, f"data.root={place}/data", f"hydra.run.dir={run}")
    wait_for(lambda: (run / "metrics.csv").exists(), child)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert f"resume={run}" in err and "Traceback" not in err
    assert command("train", f"resume={run}") == 0
    assert files.digest(run / "policy" / "model.safetensors") == whole
