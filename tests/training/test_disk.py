"""The disk fails while scripts/train.py trains: one clear line, exit code 1, and the last good checkpoint to go on from."""

import resource
import shutil
from pathlib import Path

import pytest

from tests.factory import command
from vla_mini.training.checkpoints import newest_good
from vla_mini.training.summary import Summary

# A checkpoint after steps 2 and 4, and something happens in between.
SETTINGS = ["experiment=toy_pick_smoke", "checkpoint.every_n_steps=2", "evaluation.episodes=1", "hydra.run.dir=run"]
RUN, ASIDE = Path("run"), Path("aside")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("place")


@pytest.fixture
def train(place, monkeypatch, capsys):
    """Trains until something `happens` after the third step; the last line on stderr."""
    monkeypatch.chdir(place)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def run(happens):
        def strike(self, trainer, *_):
            if trainer.global_step == 3:
                happens()

        monkeypatch.setattr(Summary, "on_train_batch_end", strike, raising=False)
        assert command("train", *SETTINGS) == 1
        monkeypatch.undo()
        monkeypatch.chdir(place)
        return capsys.readouterr().err.splitlines()[-1]

    yield run
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    for folder in (RUN, ASIDE):
        shutil.rmtree(folder, ignore_errors=True)


def test_it_is_full(train):
    """The limit on a file's size stands for the disk's: writing fails half way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert "File too large" in train(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert newest_good(RUN / "checkpoints")[0] == 2
    assert command("train", "resume=run") == 0 and (RUN / "report.html").is_file()


def test_the_folder_cannot_be_written(train):
    def in_the_way():
        (RUN / "checkpoints").rename(ASIDE)
        (RUN / "checkpoints").write_text("")  # permissions would not stop root

    line = train(in_the_way)
    assert "run/checkpoints" in line and ("File exists" in line or "Not a directory" in line)
    assert newest_good(ASIDE)[0] == 2


def test_the_folder_is_gone(train):
    line = train(lambda: shutil.rmtree(RUN))
    assert "run" in line and "No such file or directory" in line
    assert not RUN.exists()
