"""resume=RUN_DIR, as a user says it: what is taken over, what may be changed, and what is refused in one line."""

import csv
import json

import pytest

from tests.factory import command
from vla_mini import config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of four steps."""
    place = tmp_path_factory.mktemp("place")
    settings = ["experiment=toy_pick_smoke", f"data.root={place}/data", f"hydra.run.dir={place}/run", "optimizer=sgd"]
    assert command("train", *settings, "optimizer.lr=0.125") == 0
    return place / "run"


def refused(capsys, *arguments):
    capsys.readouterr()
    assert command("train", *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_the_settings_are_those_that_it_began_with(run):
    cfg = config.load("train", [f"resume={run}", "trainer.max_steps=9", "logger=wandb", "logger.project=mine"])
    assert cfg.optimizer.lr == 0.125 and cfg.data.batch_size == 16 and cfg.run_dir == cfg.resume == str(run)
    assert cfg.trainer.max_steps == 9 and cfg.logger.wandb and cfg.logger.project == "mine"
    assert config.load("train", [f"resume={run}"]).trainer.max_steps == 4


@pytest.mark.parametrize(
    "change", ["seed=1", "trainer.precision=32-true", "vision=patch", "data.batch_size=8", "experiment=toy_pick"]
)
def test_nothing_else_may_be_said_anew(run, capsys, change):
    assert change in refused(capsys, f"resume={run}", change)


def test_what_is_no_run_is_refused(run, tmp_path, capsys):
    assert "there is no config.yaml" in refused(capsys, f"resume={tmp_path}")
    assert "there is no config.yaml" in refused(capsys, "resume=runs/of/nobody")
    (tmp_path / "config.yaml").write_text("data: [")
    assert "damaged" in refused(capsys, f"resume={tmp_path}")
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text().replace("batch_size", "batch_seize"))
    assert "did you mean 'batch_size'?" in refused(capsys, f"resume={tmp_path}")


def test_a_run_that_is_done_says_so_and_goes_further_when_asked(run, capsys):
    assert "its 4 steps are done; trainer.max_steps=8 would go on" in refused(capsys, f"resume={run}")
    before = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert command("train", f"resume={run}", "trainer.max_steps=6") == 0
    after = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in after] == ["0", "1", "2", "3", "4", "5"]
    assert [row["train/loss"] for row in after[:4]] == [row["train/loss"] for row in before]
    assert float(after[4]["seconds"]) > float(after[3]["seconds"])  # the clock goes on, too
    assert config.load("train", [f"resume={run}"]).trainer.max_steps == 6
    assert (run / "checkpoints" / "last.ckpt").samefile(run / "checkpoints" / "step_000006.ckpt")


def test_nothing_is_collected_for_what_cannot_go_on(run, capsys, monkeypatch):
    monkeypatch.setattr("vla_mini.collection.collect", lambda *_, **__: pytest.fail("collected"))
    data = run.parent / "data"
    data.rename(run.parent / "aside")
    try:
        assert "steps are done" in refused(capsys, f"resume={run}")
        (run / "checkpoints").rename(run / "lost")
        assert "no good checkpoint" in refused(capsys, f"resume={run}", "trainer.max_steps=99")
    finally:
        (run / "lost").rename(run / "checkpoints")
        (run.parent / "aside").rename(data)


def test_other_data_are_refused(run, capsys):
    path = run / "run.json"
    kept = path.read_text()
    path.write_text(json.dumps(json.loads(kept) | {"dataset": "another"}))
    assert "no longer those that it began with" in refused(capsys, f"resume={run}", "trainer.max_steps=99")
    path.write_text(kept)


def test_a_run_in_which_another_process_is_at_work_is_refused(run, capsys):
    import fcntl
    import os

    held = os.open(run, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        assert "another process is at work in it" in refused(capsys, f"resume={run}", "trainer.max_steps=99")
    finally:
        os.close(held)


def test_what_a_run_was_made_with_is_beside_it(run):
    made = json.loads((run / "run.json").read_text())
    assert made["dataset"] and made["versions"]["torch"] and made["hardware"]["threads"] and "git_commit" in made
