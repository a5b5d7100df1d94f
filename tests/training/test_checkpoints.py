"""Checkpoints are complete or refused, and a run that was stopped anywhere, or whose disk failed, can be resumed."""

import errno
import json
import math
import os
import pkgutil
import resource
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from benchmarks import damage
from tests.factory import command
from tests.harness import forked
from vla_mini.language.table import TableLanguage
from vla_mini.training.checkpoints import AtomicCheckpointIO, clean_run_folder, newest_good, numbered
from vla_mini.training.module import PolicyModule
from vla_mini.utils import files

TRIALS = 50


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run of the smoke experiment, as the benchmark makes it."""
    place = tmp_path_factory.mktemp("place")
    assert command("train", "experiment=toy_pick_smoke", f"data.root={place}/data", f"hydra.run.dir={place}/run") == 0
    damage.make_recording(place)
    return place


def test_nothing_damaged_is_loaded_silently(place):
    outcomes = damage.damage(place, trials=TRIALS, seed=0)
    assert sum(outcomes.values()) == TRIALS and {what for what, _, _ in outcomes} == set(damage.LOADERS)
    assert not [found for found in outcomes if found[2] == "silent"]
    for load, what in ((load, what) for what, load in damage.LOADERS.items()):
        load(place / what)  # and intact again, all is well


@pytest.fixture
def checkpoints(tmp_path):
    for step in (1, 2, 3):
        AtomicCheckpointIO().save_checkpoint(
            {"global_step": step, "state_dict": {"x": torch.zeros(step)}}, tmp_path / f"step_{step:06d}.ckpt"
        )
    return tmp_path


@pytest.mark.parametrize("fault", ["damaged", "not finished", "no checkpoint", "the one of step 2"])
def test_the_one_before_is_taken_and_the_bad_one_named(checkpoints, fault):
    newest, before = (path for _, path in numbered(checkpoints)[:2])
    if fault == "damaged":
        newest.write_bytes(newest.read_bytes()[:-1])
    elif fault == "not finished":
        files.manifest_of(newest).unlink()
    else:
        newest.write_bytes(b"not a checkpoint" if fault == "no checkpoint" else before.read_bytes())
        files.write_checksum(newest, files.digest(newest))
    with pytest.warns(UserWarning, match=f"step_000003.ckpt .*{fault}.*: resuming from the one before it"):
        assert newest_good(checkpoints) == (2, before)


@pytest.mark.parametrize("fault", ["another run", "unreadable"])
def test_what_is_not_of_this_run_or_not_to_be_read_is_passed_over(checkpoints, monkeypatch, fault):
    """A complete checkpoint with its checksum, from elsewhere; and a disk that begins to fail."""
    newest, before = (path for _, path in numbered(checkpoints)[:2])
    digest = files.digest

    def unreadable(path):
        if path == newest:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return digest(path)

    if fault == "unreadable":
        monkeypatch.setattr(files, "digest", unreadable)
    else:
        AtomicCheckpointIO("another").save_checkpoint({"global_step": 3}, newest)
    with pytest.warns(UserWarning, match="step_000003.ckpt (cannot be read .Input/output|is of a run with other settings)"):
        assert newest_good(checkpoints, run="") == (2, before)


def test_without_a_good_one_resuming_is_refused(checkpoints):
    for _, path in numbered(checkpoints):
        path.write_bytes(b"")
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"to resume from: step_000003.ckpt is damaged"),
    ):
        newest_good(checkpoints)


def test_without_one_that_was_finished_the_run_starts(tmp_path):
    assert newest_good(tmp_path / "checkpoints") == (0, None)
    AtomicCheckpointIO().save_checkpoint({"global_step": 1}, tmp_path / "checkpoints" / "step_000001.ckpt")
    files.manifest_of(tmp_path / "checkpoints" / "step_000001.ckpt").unlink()
    with pytest.warns(UserWarning, match="was not finished"):
        assert newest_good(tmp_path / "checkpoints") == (0, None)
    (tmp_path / "policy").mkdir()  # there was a good one once: the work is not thrown away unasked
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="holds no good checkpoint"):
        newest_good(tmp_path / "checkpoints")


def test_what_kills_and_bad_disks_left_is_removed(tmp_path):
    """Newer checkpoints than the one to resume from would count among the newest, and push out good ones."""
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        AtomicCheckpointIO().save_checkpoint({"global_step": step}, folder / f"step_{step:06d}.ckpt")
    for kept in ("config.yaml", ".policy.partial-1/config.json", ".policy.partial-1-old/config.json", "policy/config.json"):
        (tmp_path / kept).parent.mkdir(exist_ok=True)
        (tmp_path / kept).touch()
    (folder / ".step_000003.ckpt.partial-99").touch()
    clean_run_folder(tmp_path, step=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "config.yaml", "policy"]
    names = [f"step_00000{step}.ckpt{suffix}" for step in (1, 2) for suffix in ("", ".manifest.json")]
    aside = ["step_000003.ckpt.bad", "step_000003.ckpt.manifest.json.bad"]
    assert sorted(path.name for path in folder.iterdir()) == [*names, *aside]


CALLED = []


def detonate(text):
    CALLED.append(text)


class Bomb:
    def __reduce__(self):
        return detonate, ("boom",)


def test_a_checkpoint_from_elsewhere_runs_no_code(checkpoints):
    AtomicCheckpointIO().save_checkpoint({"global_step": 4, "bomb": Bomb()}, checkpoints / "step_000004.ckpt")
    torch.load(checkpoints / "step_000004.ckpt", weights_only=False)
    assert CALLED == ["boom"]  # it is one
    with pytest.warns(UserWarning, match="step_000004.ckpt is no checkpoint"):
        assert newest_good(checkpoints)[0] == 3
    with pytest.raises(Exception, match="Unsupported"):
        AtomicCheckpointIO().load_checkpoint(checkpoints / "step_000004.ckpt", weights_only=False)
    assert CALLED == ["boom"]


def test_a_full_disk_harms_nothing(checkpoints):
    """The limit on a file's size stands for the disk's: writing fails half way."""
    before = {path.name: path.read_bytes() for path in checkpoints.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError):
            AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(100_000)}, checkpoints / "step_000004.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in checkpoints.iterdir()} == before


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(OSError, match="gone"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "gone" / "checkpoints" / "step_000001.ckpt")


# ---- the command, stopped in every way


SETTINGS = ["experiment=toy_pick_smoke", "trainer.max_steps=10", "checkpoint.every_n_steps=2", "evaluation.every_n_steps=5"]
SETTINGS += ["execute=8"]


def train(place, run, *more):
    return command("train", *SETTINGS, f"data.root={place}/data", f"hydra.run.dir={run}", *more)


def weights_of(run):
    return files.digest(run / "policy" / "model.safetensors")


@pytest.fixture(scope="module")
def unstopped(place):
    """The checksum of the policy of a run that is not interrupted."""
    assert train(place, place / "unstopped") == 0
    return weights_of(place / "unstopped")


def renamed_to(name):
    return lambda old, new, **_: Path(new).name == name


# What a process is about to do when it is killed, in the order in which a run does it; and the function whose call tells, with
# its arguments. Each process resumes what the one before it left.
KILLED = {
    "the first step": ("vla_mini.training.module.PolicyModule.training_step", lambda *_: True),
    "rename a checkpoint": ("os.replace", renamed_to("step_000002.ckpt")),
    "write its checksum": ("vla_mini.utils.files.write_checksum", lambda path, checksum: path.name == "step_000002.ckpt"),
    "link the newest": ("os.link", lambda *_: True),
    "write a row of metrics": ("csv.DictWriter.writerow", lambda self, row: row["step"] == 3),
    "save the policy of a checkpoint": ("vla_mini.policy.Policy.save_pretrained", lambda *_: True),
    "rename the policy's folder": ("os.rename", renamed_to("policy")),
    "validate": ("vla_mini.training.module.PolicyModule.validation_step", lambda self, *_: self.trainer.global_step == 8),
    "evaluate": ("vla_mini.evaluation.evaluate.evaluate", lambda *_, **__: True),
    "write the report": ("vla_mini.reports.run.write_report", lambda *_, **__: True),
}


def killed(moment, *arguments):
    """train.py, which kills its own process at this moment; or, without one, comes to its end."""
    if moment is None:
        os._exit(command("train", *arguments))
    name, is_reached = KILLED[moment]
    original = pkgutil.resolve_name(name)

    def kill(*positional, **named):
        if is_reached(*positional, **named):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*positional, **named)

    with patch(name, kill):
        os._exit(command("train", *arguments))


def test_killed_at_any_moment_and_resumed_it_is_the_same_run(place, unstopped):
    run = place / "killed"
    arguments, steps = [*SETTINGS, f"data.root={place}/data", f"hydra.run.dir={run}"], []
    for moment in [*KILLED, None]:
        child = forked(killed, moment, *arguments)
        child.join(120)
        assert child.exitcode == (0 if moment is None else -signal.SIGKILL), moment
        arguments = [f"resume={run}"]
        steps.append(max((step for step, _ in numbered(run / "checkpoints")), default=0))
    assert steps == [0, 0, 2, 2, 2, 5, 5, 6, 10, 10, 10]
    assert weights_of(run) == unstopped
    assert not list(run.rglob(".*partial*")) and (run / "report.html").is_file()


@contextmanager
def at_step(step, function):
    """Calls `function` in the middle of this optimizer step."""
    training_step = PolicyModule.training_step

    def patched(self, *arguments):
        if self.trainer.global_step == step - 1:
            function()
        return training_step(self, *arguments)

    with patch.object(PolicyModule, "training_step", patched):
        yield


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_a_signal_it_ends_where_it_can_be_resumed(place, unstopped, number, capfd):
    run = place / number.name
    with at_step(3, lambda: signal.raise_signal(number)):
        assert train(place, run) == 128 + number
    err = capfd.readouterr().err
    assert f"{number.name}: finishing this step (a second signal stops at once)" in err
    assert f"stopped by {number.name} after step 3; to resume: python scripts/train.py resume={run}" in err
    assert "Traceback" not in err and newest_good(run / "checkpoints")[0] == 3
    assert command("train", f"resume={run}") == 0
    assert weights_of(run) == unstopped


def saving(step, function):
    """Calls `function` while the checkpoint of this step is written."""
    save = torch.save

    def patched(checkpoint, file):
        save(checkpoint, file)
        if checkpoint["global_step"] == step:
            function()

    return patch.object(torch, "save", patched)


@pytest.mark.parametrize("when", [at_step, saving])
def test_a_second_signal_stops_at_once(place, when, capfd):
    """The last good checkpoint stays as it was."""
    run = place / f"second_{when.__name__}"
    with when(6, lambda: [signal.raise_signal(number) for number in (signal.SIGTERM, signal.SIGINT)]):
        assert train(place, run, "evaluation.every_n_steps=0") == 128 + signal.SIGINT
    err = capfd.readouterr().err
    assert "SIGTERM: finishing this step" in err and "to resume" not in err
    assert [step for step, _ in numbered(run / "checkpoints")] == [4, 2] and newest_good(run / "checkpoints")[0] == 4


def test_a_signal_while_the_last_checkpoint_is_saved_is_not_lost(place, capfd):
    run = place / "last"
    with saving(10, lambda: signal.raise_signal(signal.SIGTERM)):
        assert train(place, run) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step 10" in capfd.readouterr().err
    assert not (run / "report.html").exists() and newest_good(run / "checkpoints")[0] == 10


# ---- the disk fails, or the numbers do


@pytest.fixture
def failing(place, tmp_path, capsys):
    """Trains until something happens to the disk in step 4; the run's folder and the last line on stderr."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def run(happens):
        with at_step(4, lambda: happens(tmp_path / "run")):
            assert train(place, tmp_path / "run", "evaluation.every_n_steps=0") == 1
        return tmp_path / "run", capsys.readouterr().err.splitlines()[-1]

    yield run
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_the_disk_is_full(failing):
    """One clear line, exit code 1, and the last good checkpoint to resume from."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    run, line = failing(lambda run: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard)))
    assert "File too large" in line
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert newest_good(run / "checkpoints")[0] == 2
    assert command("train", f"resume={run}") == 0 and (run / "report.html").is_file()


def test_the_folder_cannot_be_written(failing):
    def obstruct(run):
        (run / "checkpoints").rename(run / "aside")
        (run / "checkpoints").write_text("")  # permissions would not stop root

    run, line = failing(obstruct)
    assert "run/checkpoints" in line and ("File exists" in line or "Not a directory" in line)
    assert newest_good(run / "aside")[0] == 2


def test_the_folder_is_gone(failing):
    run, line = failing(shutil.rmtree)
    assert "run" in line and "No such file or directory" in line
    assert not run.exists()


def test_too_many_steps_that_are_not_finite_end_it_with_a_good_checkpoint(place, tmp_path, monkeypatch, capsys):
    """The language part gives NaN from the second step on."""
    forward, calls = TableLanguage.forward, []

    def failing(self, tokens, mask):
        calls.append(self.training and torch.is_grad_enabled())
        return forward(self, tokens, mask) * (math.nan if calls[-1] and sum(calls) > 1 else 1)

    monkeypatch.setattr(TableLanguage, "forward", failing)
    run = tmp_path / "run"
    assert train(place, run, "guard.patience=3", "evaluation.every_n_steps=0") == 1
    reason = "NonFiniteError: 3 steps in a row were not finite, the last because of the output of language"
    assert reason in capsys.readouterr().err
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values() if tensor.is_floating_point())
    assert not (run / "evaluation").exists() and json.loads((run / "policy" / "config.json").read_text())
