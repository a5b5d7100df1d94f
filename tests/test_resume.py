"""resume=RUN_DIR on the command line: which settings are kept, which may change, and what is refused in one line."""

import csv
import json

import pytest

from tests.factory import command
from vla_mini import config
from vla_mini.config.folders import save_settings
from vla_mini.training.checkpoints import check_provenance, fingerprint, provenance, write_provenance
from vla_mini.utils import files


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
    settings = config.load("train", [f"resume={run}", "trainer.max_steps=9", "logger=wandb", "logger.project=mine"])
    assert settings.optimizer.lr == 0.125 and settings.data.batch_size == 16
    assert settings.run_dir == settings.resume == str(run)
    assert settings.trainer.max_steps == 9 and settings.logger.wandb and settings.logger.project == "mine"
    assert config.load("train", [f"resume={run}"]).trainer.max_steps == 4
    compiled = config.load("train", [f"resume={run}", "compile=default", "compile_dynamic=true"])
    assert (compiled.compile, compiled.compile_dynamic, compiled.trainer.max_steps) == ("default", True, 4)


def test_settings_are_kept_as_they_were(tmp_path):
    arguments = [
        "experiment=toy_pick_smoke",
        "logger=wandb",
        "logger.project=a${b}, \\${c}",
        "freeze=[vision]",
        "optimizer=adam",
    ]
    settings = config.load("train", arguments)
    save_settings(settings, tmp_path)
    resumed = config.load("train", [f"resume={tmp_path}"])
    assert resumed == settings.model_copy(update={"resume": str(tmp_path), "run_dir": str(tmp_path)})
    assert config.load("train", [f"resume={tmp_path}"]).logger.project == "a${b}, \\${c}"


@pytest.mark.parametrize(
    "change",
    ["seed=1", "trainer.precision=32-true", "vision=patch", "data.batch_size=8", "trainer.devices=2", "experiment=toy_pick"],
)
def test_nothing_else_may_change(run, capsys, change):
    assert change in refused(capsys, f"resume={run}", change)


def test_a_folder_that_is_no_run_is_refused(run, tmp_path, capsys):
    assert "there is no config.yaml" in refused(capsys, f"resume={tmp_path}")
    assert "there is no such folder" in refused(capsys, "resume=runs/of/nobody")
    (tmp_path / "config.yaml").write_text("data: [")
    assert "damaged" in refused(capsys, f"resume={tmp_path}")
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text().replace("batch_size", "batch_seize"))
    assert "did you mean 'data.batch_size'?" in refused(capsys, f"resume={tmp_path}")
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text().replace("ablate:", "blind:"))
    assert refused(capsys, f"resume={tmp_path}").endswith("made by vla-mini 0.1, and cannot be resumed by this version")


@pytest.mark.parametrize("kind", ["link", "text"])
def test_latest_is_the_run_that_it_names_now(run, tmp_path, kind):
    """Another run that saves a policy meanwhile changes the link, and must not be written to."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.yaml").write_text((run / "config.yaml").read_text())
    latest = tmp_path / "latest"
    latest.symlink_to("mine") if kind == "link" else latest.write_text("mine\n")
    settings = config.load("train", [f"resume={latest}"])
    assert settings.run_dir == settings.resume == str(tmp_path / "mine")


def test_an_empty_name_does_not_start_a_new_run(capsys):
    assert "resume= names no run" in refused(capsys, "resume=", "experiment=toy_pick_smoke")


def test_a_finished_run_is_refused_and_trains_further_when_asked(run, capsys):
    assert "its 4 steps are done; trainer.max_steps=8 would train further" in refused(capsys, f"resume={run}")
    before = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert command("train", f"resume={run}", "trainer.max_steps=6") == 0
    after = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in after] == ["0", "1", "2", "3", "4", "5"]
    assert [row["train/loss"] for row in after[:4]] == [row["train/loss"] for row in before]
    assert float(after[4]["seconds"]) > float(after[3]["seconds"])  # the clock continues, too
    assert config.load("train", [f"resume={run}"]).trainer.max_steps == 6
    assert (run / "checkpoints" / "last.ckpt").samefile(run / "checkpoints" / "step_000006.ckpt")


def test_a_dataset_that_was_moved_is_found_and_another_one_is_refused(run, capsys, tmp_path):
    moved, steps = tmp_path / "moved", config.load("train", [f"resume={run}"]).trainer.max_steps + 2
    (run.parent / "data").rename(moved)
    assert command("train", f"resume={run}", f"trainer.max_steps={steps}", f"data.root={moved}", "data.verify=true") == 0
    moved.rename(run.parent / "data")
    other = tmp_path / "other"
    assert command("collect", "episodes=4", "validation_episodes=1", "seed=7", f"output={other}") == 0
    changed = [f"resume={run}", f"trainer.max_steps={steps + 2}", f"data.root={other}"]
    assert "the dataset in data.root is not the one that the run began with" in refused(capsys, *changed)


def test_a_longer_run_that_ends_in_its_evaluation_is_not_finished(run, monkeypatch):
    """The report is of the shorter one."""

    def ends(*arguments, **options):
        raise SystemExit(3)

    steps = config.load("train", [f"resume={run}"]).trainer.max_steps + 2
    with monkeypatch.context() as patch:
        patch.setattr("vla_mini.evaluation.evaluate.evaluate", ends)
        assert command("train", f"resume={run}", f"trainer.max_steps={steps}") == 3
    assert not (run / "report.html").exists() and not (run / "evaluation" / "metrics.json").exists()
    assert command("train", f"resume={run}") == 0
    assert (run / "report.html").exists()


def test_settings_that_were_edited_are_refused(run, capsys):
    """The optimizer's state would silently override them."""
    path = run / "config.yaml"
    kept = path.read_text()
    path.write_text(kept.replace("lr: 0.125", "lr: 0.25"))
    with pytest.warns(UserWarning, match="is of a run with other settings"):
        line = refused(capsys, f"resume={run}", "trainer.max_steps=99")
    assert "no good checkpoint to resume from" in line and "is of a run with other settings" in line
    path.write_text(kept)
    settings = config.load("train", [f"resume={run}"])
    data, logger = (settings.data.model_copy(update={"root": "elsewhere"}), settings.logger.model_copy(update={"wandb": True}))
    moved = settings.model_copy(update={"run_dir": "elsewhere", "data": data, "logger": logger})
    written_out = type(settings).model_validate(settings.model_dump(mode="json", exclude={"augmentation"}))
    assert fingerprint(written_out, dataset="a") == fingerprint(settings, dataset="a")
    assert fingerprint(moved, dataset="a") == fingerprint(settings, dataset="a") != fingerprint(settings, dataset="b")


def test_nothing_is_collected_for_a_run_that_cannot_be_resumed(run, capsys, monkeypatch):
    monkeypatch.setattr("vla_mini.collection.collect", lambda *_, **__: pytest.fail("collected"))
    data = run.parent / "data"
    data.rename(run.parent / "moved")
    try:
        assert "steps are done" in refused(capsys, f"resume={run}")
        for path in (run / "checkpoints").glob("step_*.ckpt"):
            files.manifest_of(path).rename(run / files.manifest_of(path).name)
        line = refused(capsys, f"resume={run}", "trainer.max_steps=99")
        assert "no good checkpoint" in line and "was not finished" in line
    finally:
        for path in run.glob("step_*.manifest.json"):
            path.rename(run / "checkpoints" / path.name)
        (run.parent / "moved").rename(data)


def test_other_data_are_refused(run, capsys):
    path = run / "run.json"
    kept = path.read_text()
    path.write_text(json.dumps(json.loads(kept) | {"dataset": "another"}))
    assert "the dataset in data.root is not the one that the run began with" in refused(
        capsys, f"resume={run}", "trainer.max_steps=99"
    )
    path.write_text(json.dumps(json.loads(kept) | {"init_from": "another"}))
    assert "the policy in init_from is not the one that the run began with" in refused(
        capsys, f"resume={run}", "trainer.max_steps=99"
    )
    path.write_text(kept)


def test_init_from_is_kept_as_the_folder_itself(tmp_path):
    """`latest` names another run as soon as this one has saved a policy."""
    (tmp_path / "first").mkdir()
    (tmp_path / "latest").symlink_to("first")
    for place, kept in ((tmp_path / "latest", str(tmp_path / "first")), ("owner/name", "owner/name")):
        save_settings(config.load("train", [f"init_from={place}"]), tmp_path)
        assert config.load("train", [f"resume={tmp_path}"]).init_from == kept


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"dataset": "a"}'])
def test_a_damaged_record_is_named(run, capsys, text):
    path = run / "run.json"
    kept = path.read_text()
    path.write_text(text)
    assert "run.json is damaged" in refused(capsys, f"resume={run}", "trainer.max_steps=99")
    path.write_text(kept)


def test_what_may_change_results_is_a_warning_each_time(tmp_path):
    """run.json stays what the run began with."""
    began = provenance("32-true", dataset="a")
    now = began | {"git_commit": "another", "hardware": began["hardware"] | {"threads": 99, "gpus": ["one"], "precision": "no"}}
    write_provenance(tmp_path, began)
    for _ in range(2):
        with pytest.warns(UserWarning) as warned:
            check_provenance(tmp_path, now)
        assert [str(warning.message).split(" with ")[1].split()[0] for warning in warned] == [
            "commit",
            "threads",
            "gpus",
            "precision",
        ]
        write_provenance(tmp_path, now)


def test_a_run_in_which_another_process_is_at_work_is_refused(run, capsys):
    import fcntl
    import os

    held = os.open(run, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        assert "another process is at work in it" in refused(capsys, f"resume={run}", "trainer.max_steps=99")
    finally:
        os.close(held)


def test_what_a_run_was_made_with_is_in_its_folder(run):
    made = json.loads((run / "run.json").read_text())
    assert made["dataset"] and made["versions"]["torch"] and made["hardware"]["threads"] and "git_commit" in made
