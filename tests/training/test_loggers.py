"""Where metrics go: one row for each step, in whatever order they come; and services that do not answer stop nothing."""

import csv
import json
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import lightning
import pytest

from tests.factory import ROOT, make_batch, make_policy
from tests.harness import fit
from vla_mini import config
from vla_mini.training.loggers import CSVLogger, TrainingBar, build_loggers

TIMEOUT = 10  # seconds, of which loggers.py allows four; W&B's own are 90 and more


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_all_metrics_of_a_step_are_in_one_row(tmp_path):
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.log_metrics({"loss": 2.0}, step=0)
    logger.log_metrics({"norm": 0.5}, step=0)  # a column that was not there
    logger.log_metrics({"loss": 1.0}, step=3)
    logger.log_metrics({"success, or not": 0.25, "loss": 0.1 + 0.2}, step=3)
    assert rows(logger.path) == [
        {"step": "0", "loss": "2.0", "norm": "0.5", "success, or not": ""},
        {"step": "3", "loss": "0.30000000000000004", "norm": "", "success, or not": "0.25"},
    ]


def test_a_resumed_file_holds_the_steps_before_and_no_other(tmp_path):
    logger = CSVLogger(tmp_path / "metrics.csv")
    for step in range(5):
        logger.log_metrics({"loss": float(step)}, step=step)
    with logger.path.open("a") as file:
        file.write("1")  # of a row 12, say, when the process was killed
    resumed = CSVLogger(logger.path, steps=3)
    resumed.log_metrics({"late": 5.0}, step=2)
    resumed.log_metrics({"loss": 30.0, "new": 1.0}, step=3)
    assert [(row["step"], row["loss"], row["late"], row["new"]) for row in rows(logger.path)] == [
        ("0", "0.0", "", ""),
        ("1", "1.0", "", ""),
        ("2", "2.0", "5.0", ""),
        ("3", "30.0", "", "1.0"),
    ]


def test_a_run_stopped_before_it_logged_anything_is_resumed(tmp_path):
    logger = CSVLogger(tmp_path / "metrics.csv", steps=3)
    logger.log_metrics({"loss": 1.0}, step=3)
    assert rows(logger.path) == [{"step": "3", "loss": "1.0"}]


@pytest.mark.parametrize("metrics", [{"loss": 1.0}, {"late": 5.0}])
def test_a_row_is_never_lost_while_it_is_written_anew(tmp_path, monkeypatch, metrics):
    """Killed where a validation adds to the last row, which a checkpoint counts."""
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.log_metrics({"loss": 0.5}, step=1)

    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(csv.DictWriter, "writerow", killed)
    with pytest.raises(KeyboardInterrupt):
        logger.log_metrics(metrics, step=1)
    assert rows(logger.path) == [{"step": "0", "loss": "1.0"}, {"step": "1", "loss": "0.5"}]


def test_the_end_of_a_longer_row_is_no_row(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss,rate\r\n0,1.0,0.25\r\n1,0.5,0.5\r\n1\r\n")  # killed before what was left of 0.51 was cut off
    assert CSVLogger(path, steps=2).path.read_text().split() == ["step,loss,rate", "0,1.0,0.25", "1,0.5,0.5"]


def test_several_loggers_together(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = config.load("train", ["experiment=toy_pick_smoke", "logger=[csv,tensorboard]"])
    loggers = build_loggers(settings.logger, run_dir=tmp_path, config={"data": {"batch_size": 16}})
    for logger in loggers:
        logger.log_metrics({"train/loss": 1.5}, step=7)
        logger.finalize("success")
    assert rows(tmp_path / "metrics.csv") == [{"step": "7", "train/loss": "1.5"}]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(7, 1.5)]
    assert config.load("train", ["experiment=toy_pick_smoke", "logger=[csv,wandb]"]).logger.wandb


# Reads a line for each run: its folder and environment. Writes what the run's logger does.
RUNS = """
import json, os, sys, time, warnings
from pathlib import Path
import wandb
from vla_mini.settings import Logger
from vla_mini.training.loggers import build_loggers, finish_loggers

def call(function, *arguments, **options):
    start = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = function(*arguments, **options)
    return value, {"seconds": time.monotonic() - start, "warnings": [str(warning.message) for warning in caught]}

for line in sys.stdin:
    folder, environment = json.loads(line)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ |= environment
    wandb.teardown()
    loggers, found = call(build_loggers, Logger(wandb=True, mode="online", project="test"), run_dir=Path(folder), config={})
    run = loggers[-1].experiment
    print(json.dumps(found | {"offline": run.offline, "id": run.id}), flush=True)
    if not run.offline:
        sys.stdin.readline()  # the service dies
    _, found = call(finish_loggers, loggers, {"loss": 1.0}, step=3)
    print(json.dumps(found), flush=True)
"""


class Service(BaseHTTPRequestHandler):
    """Answers everything with its server's status; with 200, as W&B as far as a run needs it to begin; with 0 not at all."""

    def do_POST(self):
        asked = str(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        status = self.server.status
        if status == 200:
            project = {"id": "p", "name": "test", "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "x", "name": "run", "displayName": "run", "config": "{}", "historyLineCount": 0, "project": project}
            said = {"upsertBucket": {"bucket": bucket, "inserted": True}} if "upsertBucket" in asked else {}
            answer = json.dumps({"data": said}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        elif status:
            self.send_error(status)

    do_GET = do_HEAD = do_POST  # noqa: N815 (the names that http.server calls)

    def log_message(self, *_):
        pass


@contextmanager
def serving(service):
    """A service that answers with a status, that accepts connections and sends nothing, or that is not there."""
    if not service.isdecimal():
        with socket.create_server(("127.0.0.1", 0)) as silent:
            yield SimpleNamespace(server_port=silent.getsockname()[1] if service == "silent" else 9)
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        server.status = int(service)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def worker():
    """A process in which runs log to W&B, one after the other: importing all that takes is the most of a run's time."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([sys.executable, "-c", RUNS], cwd=ROOT, **streams) as process:
        yield process
        process.stdin.close()


def ask(worker, line):
    worker.stdin.write(f"{line}\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def run_of(folder, port, key="0" * 40):
    environment = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "NETRC": str(folder / "none"), "HOME": str(folder)}
    return json.dumps([str(folder), environment | ({"WANDB_API_KEY": key} if key else {})])


@pytest.mark.parametrize(
    ("service", "warning"),
    [
        ("no key", "no W&B key"),
        ("closed", "does not answer"),
        ("silent", "does not answer"),
        ("401", "did not answer"),
        ("500", "did not answer"),
    ],
)
def test_online_without_a_service_continues_offline(worker, tmp_path, service, warning):
    """Soon; and under the same id, where it is resumed."""
    key = {"no key": None, "closed": "0" * 40 + " "}.get(service, "0" * 40)  # a space, as one may paste it
    ids = set()
    with serving(service) as server:
        for _ in range(1 + (service == "closed")):
            found = ask(worker, run_of(tmp_path, server.server_port, key))
            ids.add(found["id"])
            assert found["offline"] and found["seconds"] < TIMEOUT
            assert any("continuing offline" in text and warning in text for text in found["warnings"])
            assert not json.loads(worker.stdout.readline())["warnings"]
    assert len(ids) == 1


def test_a_service_that_dies_midway_stops_nothing(worker, tmp_path):
    with serving("200") as server:
        assert not ask(worker, run_of(tmp_path, server.server_port))["offline"]
        server.status = 0
        found = ask(worker, "it has died")
    assert found["seconds"] < TIMEOUT
    assert any("W&B ended early" in line and f"wandb sync {tmp_path}" in line for line in found["warnings"])
    assert rows(tmp_path / "metrics.csv") == [{"step": "3", "loss": "1.0"}]


def test_an_error_before_training_is_not_hidden_by_the_bar():
    class Broken(lightning.Callback):
        def on_fit_start(self, trainer, module):
            raise ValueError("cannot start")

    policy = make_policy()
    with pytest.raises(ValueError, match="cannot start"):
        fit(policy, [make_batch(policy)], callbacks=[TrainingBar(), Broken()])
