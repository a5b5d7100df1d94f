"""Checkpoints that never lie: what is damaged is named and passed over, and what fails to be written harms nothing."""

import errno
import multiprocessing
import os
import random
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
from vla_mini.training.checkpoints import WholeFiles, clear_up, newest_good, numbered
from vla_mini.training.module import PolicyModule

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


@pytest.mark.parametrize("fault", ["another run", "unreadable"])
def test_what_is_not_of_this_run_or_not_to_be_read_is_passed_over(checkpoints, monkeypatch, fault):
    """A whole checkpoint and its sum, from elsewhere; and a disk that begins to fail."""
    newest, before = (path for _, path in numbered(checkpoints)[:2])
    digest = files.digest

    def unreadable(path):
        if path == newest:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return digest(path)

    if fault == "unreadable":
        monkeypatch.setattr(files, "digest", unreadable)
    else:
        WholeFiles("another").save_checkpoint({"global_step": 3}, newest)
    with pytest.warns(UserWarning, match="step_000003.ckpt (cannot be read .Input/output|was taken with other settings)"):
        assert newest_good(checkpoints, run="") == (2, before)


def test_without_a_good_one_it_is_said(checkpoints):
    for _, path in numbered(checkpoints):
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"to go on from: step_000003.ckpt is damaged"),
    ):
        newest_good(checkpoints)


def test_without_one_that_was_finished_it_begins(tmp_path):
    assert newest_good(tmp_path / "checkpoints") == (0, None)
    WholeFiles().save_checkpoint({"global_step": 1}, tmp_path / "checkpoints" / "step_000001.ckpt")
    (tmp_path / "checkpoints" / "step_000001.ckpt.sha256").unlink()
    with pytest.warns(UserWarning, match="was not finished"):
        assert newest_good(tmp_path / "checkpoints") == (0, None)
    (tmp_path / "policy").mkdir()  # there was one once: the work is not thrown away unasked
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="holds no good checkpoint"):
        newest_good(tmp_path / "checkpoints")


def test_what_kills_and_bad_disks_left_is_cleared_up(tmp_path):
    """What is newer than the one to go on from would count among the newest, and push out good ones."""
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        WholeFiles().save_checkpoint({"global_step": step}, folder / f"step_{step:06d}.ckpt")
    for kept in ("config.yaml", ".policy.partial-1/config.json", ".policy.partial-1-old/config.json", "policy/config.json"):
        (tmp_path / kept).parent.mkdir(exist_ok=True)
        (tmp_path / kept).touch()
    (folder / ".step_000003.ckpt.partial-99").touch()
    clear_up(tmp_path, step=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "config.yaml", "policy"]
    names = [f"step_00000{step}.ckpt{suffix}" for step in (1, 2) for suffix in ("", ".sha256")]
    aside = ["step_000003.ckpt.bad", "step_000003.ckpt.sha256.bad"]
    assert sorted(path.name for path in folder.iterdir()) == [*names, *aside]


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


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def forked():
    """Starts train.py in a process that has imported all it needs: killing it many times costs little."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.factory", "vla_mini.training.trainer", "vla_mini.evaluation.report"])

    def start(*arguments):
        child = server.Process(target=command, args=("train", *arguments))
        child.start()
        return child

    return start


@pytest.fixture(scope="module")
def whole(place, forked):
    """What the run is that nobody stops: the checksum of its policy. And how many seconds it worked."""
    run = place / "whole"
    child = forked(*SLOWLY, f"data.root={place}/data", f"hydra.run.dir={run}")
    wait_for((run / "config.yaml").exists)
    begun = time.monotonic()
    child.join()
    return files.digest(run / "policy" / "model.safetensors"), time.monotonic() - begun


def test_killed_at_random_moments_and_resumed_it_is_the_same_run(place, whole, forked):
    """From before the first checkpoint to the last evaluation, in the middle of whatever it was doing."""
    digest, seconds = whole
    run, draw = place / "killed", random.Random(0)
    arguments = [*SLOWLY, f"data.root={place}/data", f"hydra.run.dir={run}"]
    moments = [0.0, *(draw.uniform(0, 0.7 * seconds) for _ in range(6)), 120.0]  # after the run had a folder, or was resumed
    reached = []
    for moment in moments:
        child = forked(*arguments)
        wait_for((run / "config.yaml").exists)
        child.join(moment)
        child.kill()
        child.join()
        reached.append(max((step for step, _ in numbered(run / "checkpoints")), default=0))
        if (run / "report.html").exists():
            break
        arguments = [f"resume={run}"]
    assert len(reached) > 2 and reached[0] == 0, reached
    assert files.digest(run / "policy" / "model.safetensors") == digest
    assert not list(run.rglob(".*partial*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_where_it_can_go_on(place, whole, number):
    run = place / number.name
    child = start(*SLOWLY, f"data.root={place}/data", f"hydra.run.dir={run}")
    wait_for(lambda: (run / "metrics.csv").exists())
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert f"resume={run}" in err and "Traceback" not in err
    assert command("train", f"resume={run}") == 0
    assert files.digest(run / "policy" / "model.safetensors") == whole[0]


@pytest.mark.parametrize("when", ["in a step", "while saving"])
def test_a_second_signal_stops_at_once(place, monkeypatch, capfd, when):
    """The last good checkpoint stays as it was, and is gone on from."""
    run = place / when.replace(" ", "_")
    step, save = PolicyModule.training_step, torch.save

    def twice(*_):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

    def training_step(self, *arguments):
        return twice() if self.trainer.global_step == 5 else step(self, *arguments)

    def saving(checkpoint, file):
        save(checkpoint, file)
        if checkpoint["global_step"] == 6:
            twice()

    monkeypatch.setattr(PolicyModule, "training_step", training_step if when == "in a step" else step)
    monkeypatch.setattr(torch, "save", saving if when == "while saving" else save)
    arguments = [*SLOWLY, "evaluation.every_n_steps=0", f"data.root={place}/data", f"hydra.run.dir={run}"]
    assert command("train", *arguments) == 128 + signal.SIGINT
    said = capfd.readouterr().err
    assert "SIGTERM: finishing this step (once more stops at once)" in said and "goes on" not in said
    assert newest_good(run / "checkpoints")[0] == 4
    assert [step for step, _ in numbered(run / "checkpoints")] == [4, 2]


def test_a_signal_while_the_last_checkpoint_is_saved_is_heeded(place, monkeypatch, capfd):
    run, save = place / "last", torch.save

    def saving(checkpoint, file):
        save(checkpoint, file)
        if checkpoint["global_step"] == 12:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", saving)
        assert command("train", *SLOWLY, f"data.root={place}/data", f"hydra.run.dir={run}") == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step 12" in capfd.readouterr().err
    assert not (run / "report.html").exists() and newest_good(run / "checkpoints")[0] == 12
