"""Two processes on the CPU make the steps, and the run of train.py, that one process makes; and both end together.

Lightning starts the second one, or torchrun or srun starts both, as on two machines: for srun, which is not here, by the
environment variables that it sets.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from safetensors.torch import load_file

from tests.factory import ROOT, command, make_policy, mean_loss
from tests.harness import SGD, fit, forked, read_rows, rounded_to_zero
from tests.training import ddp_worker
from tests.training.ddp_worker import FROZEN, SIZES, STAGES, big_batch
from tests.training.test_step import flat, gradients_of_the_mean
from vla_mini import config
from vla_mini.commands.processes import RUN_DIR
from vla_mini.finetuning.freezing import freeze
from vla_mini.finetuning.unfreezing import Unfreezing
from vla_mini.testing import split

SMOKE = ["experiment=toy_pick_smoke", "trainer.accelerator=cpu", "trainer.precision=64-true", "optimizer=sgd", "execute=8"]
TOGETHER = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=8"]
ALONE = ["data.batch_size=16"]
# Windows of four micro-batches, of which an epoch ends with a shorter one; five of them reach into the second epoch.
WINDOWS = ["trainer.accumulate_grad_batches=4", "trainer.max_steps=5", "trainer.val_check_interval=7"]
RESUME = "python scripts/train.py resume=runs/toy_pick_smoke/"
TIMEOUT = 600  # seconds, of which a machine with nothing else to do needs ten: two busy ones may take 20 times as long


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


# ---- steps


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes found that trained together, by gloo on the CPU; and where they logged."""
    folder = tmp_path_factory.mktemp("ddp")
    port = free_port()
    processes = [forked(ddp_worker.main, folder, rank, port) for rank in range(2)]
    for process in processes:
        process.join(TIMEOUT)
    printed = "".join((folder / f"rank{rank}.txt").read_text() for rank in range(2))
    assert [process.exitcode for process in processes] == [0, 0], printed
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)], folder, printed


def test_two_processes_compute_the_gradient_of_the_big_batch(ranks):
    """Unequal micro-batches, unequal masks, a short last window, a frozen part: 1e-12 in float64, and equal weights."""
    (first, second), _, _ = ranks
    policy = make_policy(dtype=torch.float64)
    freeze(policy, FROZEN)
    sizes = [sum(rank[0] + rank[1] for rank in SIZES), sum(rank[2] for rank in SIZES)]
    for window, one, two in zip(split(big_batch(policy), sizes), first["gradients"], second["gradients"], strict=True):
        expected = gradients_of_the_mean(policy, window)
        assert one.keys() == two.keys() == expected.keys()
        for got in (flat(one), flat(two)):
            assert (got - flat(expected)).norm() / flat(expected).norm() < 1e-12
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if name in expected:
                    parameter -= 0.1 * expected[name]
    for name, tensor in policy.state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], tensor, rtol=1e-11, atol=1e-13)


def test_parameters_that_the_loss_does_not_use_are_left_out(ranks):
    for result in ranks[0]:
        for window, beside in zip(result["gradients"], result["gradients beside a spare layer"], strict=True):
            assert window.keys() == beside.keys()  # the spare layer has none
            torch.testing.assert_close(flat(beside), flat(window), rtol=1e-12, atol=1e-15)


def test_what_unfreezes_is_averaged_over_the_processes(ranks):
    """DistributedDataParallel knows only what learnt when it was made."""
    (first, second), _, _ = ranks
    policy = make_policy(dtype=torch.float64)
    sizes = [sum(rank[0] + rank[1] for rank in SIZES), sum(rank[2] for rank in SIZES)]
    windows = split(big_batch(policy), sizes)
    fit(policy, windows, callbacks=[Unfreezing(policy, STAGES)], optimizer=SGD | {"lr": 0.1}, precision="64-true")
    for name, tensor in policy.state_dict().items():
        assert torch.equal(first["weights in stages"][name], second["weights in stages"][name]), name
        torch.testing.assert_close(first["weights in stages"][name], tensor, rtol=1e-11, atol=1e-13)
    assert not torch.equal(policy.vision.stem.weight, make_policy(dtype=torch.float64).vision.stem.weight)


def test_the_logged_loss_is_that_of_all_processes(ranks):
    _, folder, _ = ranks
    rows = read_rows(folder)
    policy = make_policy(dtype=torch.float64)
    window = split(big_batch(policy), [16, 8])[0]
    loss = next(float(row["train/loss"]) for row in rows if row["train/loss"])
    assert loss == pytest.approx(mean_loss(policy, window).item(), rel=1e-6)
    scales = [row["gradient_noise/scale"] for row in rows if row["gradients/total"]]
    assert len(scales) == 2 and all(scales)  # the short window has one micro-batch a process, which makes two


def test_a_nan_on_one_process_skips_the_step_on_both(ranks):
    results, _, output = ranks
    assert [result["skipped"] for result in results] == [1, 1]
    assert all(result["unchanged"] and result["origin"] == "the loss term action (rank 1)" for result in results)
    assert output.count("step 0 skipped") == 1  # printed once


# ---- runs of train.py


@contextmanager
def started(
    folder: Path,
    *arguments: str,
    script: Path = ROOT / "scripts" / "train.py",
    settings: list[str] = SMOKE,
    launcher: Sequence[str] = (),
    variables: Mapping[str, str] = {},
) -> Iterator[subprocess.Popen]:
    """train.py in a process of its own and, as it asks for, one more; their output ends when the last of them has ended.

    - launcher: of the script, with its options; variables: of the environment
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"} | variables
    for name in ("WANDB_SERVICE", RUN_DIR):  # of runs in this process
        environment.pop(name, None)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *launcher, str(script), *settings, *arguments]
    with subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **streams) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # both have ended, as they should
                os.killpg(process.pid, signal.SIGKILL)


EXEC = f'exec(open("{ROOT / "scripts" / "train.py"}").read())'
PLANTED = """
import math, os, signal, time, torch
from vla_mini.language.table import TableLanguage

forward, rank = TableLanguage.forward, os.environ.get("LOCAL_RANK", "0")

def planted(self, tokens, mask):
    words = forward(self, tokens, mask)
    if self.training:
        planted.calls += 1
        {here}
    return words

TableLanguage.forward, planted.calls = planted, 0
exec(open("{script}").read())
"""


def planted(folder: Path, here: str) -> Path:
    """train.py with `here` where its language part has computed the `words` of a training batch."""
    script = folder / "train.py"
    script.write_text(PLANTED.format(script=ROOT / "scripts" / "train.py", here=here))
    return script


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder in which two processes made the run `runs/.../latest`, and one process the run `alone`; and what was printed.

    In their sixth micro-batch a signal came to both, as a scheduler or a terminal sends it, and the run was resumed.
    """
    folder, outputs = tmp_path_factory.mktemp("ddp"), []
    script = planted(folder, "rank == '0' and planted.calls == 6 and os.killpg(os.getpgid(0), signal.SIGTERM)")
    with started(folder, *WINDOWS, *TOGETHER, "logger=wandb", script=script) as process:
        outputs.append(process.communicate(timeout=TIMEOUT))
        assert process.returncode == 143, outputs
    with started(folder, "resume=runs/toy_pick_smoke/latest", settings=[]) as process:
        outputs.append(process.communicate(timeout=TIMEOUT))
        assert process.returncode == 0, outputs
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command("train", *SMOKE, *WINDOWS, *ALONE, "hydra.run.dir=alone") == 0
    return folder, folder / "runs" / "toy_pick_smoke" / "latest", outputs


@pytest.mark.slow
def test_two_processes_compile_what_they_train(runs):
    folder, together, _ = runs
    with started(folder, *WINDOWS, *TOGETHER, "compile=default", "hydra.run.dir=compiled") as process:
        out, err = process.communicate(timeout=10 * TIMEOUT)
    assert process.returncode == 0, err
    assert "compiling took" in out
    found, expected = (load_file(run / "policy" / "model.safetensors") for run in (folder / "compiled", together))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-9)


def figures(run: Path) -> dict[str, list[float]]:
    """metrics.csv by columns, without the empty cells, and without what depends on time or on a process's noise."""
    rows = read_rows(run)
    columns = {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}
    return {name: column for name, column in columns.items() if "second" not in name and "gradient_noise" not in name}


def test_two_processes_make_the_run_that_one_makes(runs):
    """Half the samples each, and stopped: equal weights, losses, validation, gradients, clipping, updates; unequal masks."""
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
        few = rounded_to_zero(name) if name.endswith("/zeros") else 1e-12
        assert found[name] == pytest.approx(expected[name], rel=1e-6, abs=few), name


def test_a_run_of_two_processes_is_resumed_by_one(runs, tmp_path):
    """With the samples of both: as if one had made it from the beginning."""
    folder, together, _ = runs
    changed = ["trainer.max_steps=8", f"data.root={folder / 'data' / 'toy_pick_16_seed0'}"]
    for name, source in (("one", together), ("alone", folder / "alone")):
        shutil.copytree(source, tmp_path / name, symlinks=True)
    alone = ["trainer.devices=1", "data.batch_size=16", "logger=csv"]
    with started(tmp_path, "resume=one", *changed, *alone, settings=[]) as process:
        assert (process.communicate(timeout=TIMEOUT)[1], process.returncode) == ("", 0)
    assert command("train", f"resume={tmp_path / 'alone'}", *changed) == 0
    found, expected = (load_file(tmp_path / name / "policy" / "model.safetensors") for name in ("one", "alone"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-13)
    assert [row["step"] for row in read_rows(tmp_path / "one")] == [str(step) for step in range(8)]


def test_everything_is_printed_and_written_once(runs):
    folder, together, ((first, stopped), (second, err)) = runs
    for line in ("precision: 64-true, processes: 2", "component ", "step 2: success"):
        assert first.count(line) == 1, first
    for line in ("resumes after step 2", "processes: 2", "step 4: success", "held_out_pairs", "trained"):
        assert second.count(line) == 1, second
    assert stopped.splitlines()[-1] == f"stopped by SIGTERM after step 2; to resume: {RESUME}{os.readlink(together)}"
    assert "Traceback" not in stopped and err == ""
    assert [path.is_symlink() for path in sorted((folder / "runs" / "toy_pick_smoke").iterdir())] == [False, True]
    assert len(list(together.glob("wandb/offline-run-*"))) == 2  # one each time
    written, alone = ({str(path.relative_to(run)) for path in run.rglob("*")} for run in (together, folder / "alone"))
    assert {path for path in written if not path.startswith("wandb")} == alone
    assert f"run_dir: runs/toy_pick_smoke/{os.readlink(together)}" in (together / "config.yaml").read_text()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_nan_in_one_process_stops_both(strategy, runs, tmp_path):
    """After the same steps, with one message; no weight changes."""
    seed = 'open("seed_of_" + rank, "w").write(str(torch.initial_seed()))'
    script = planted(tmp_path, f'{seed}; words = words * (math.nan if rank == "1" else 1)')
    data = f"data.root={runs[0] / 'data' / 'toy_pick_16_seed0'}"
    arguments = (data, *TOGETHER, "guard.patience=2", "evaluation.every_n_steps=0", "hydra.run.dir=run")
    other = ["trainer.precision=32-true", f"trainer.strategy={strategy}"]
    with started(tmp_path, *arguments, *other, script=script) as process:
        _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    reason = "not finite is the output of language (rank 1)"
    assert err.splitlines()[:2] == [f"step {n} skipped ({n + 1} in a row, {n + 1} in all): {reason}" for n in (0, 1)]
    assert err.count("Traceback") == err.count("train: NonFiniteError: 2 steps in a row were not finite") == 1
    if strategy == "ddp":
        checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "run" / "policy" / "model.safetensors").values())
    assert [(tmp_path / f"seed_of_{rank}").read_text() for rank in (0, 1)] == ["0", "1"]  # each draws its own noise


def test_a_second_signal_ends_both_at_once(runs, tmp_path):
    """Also while the first process waits for the other one, and runs no handler."""
    script = planted(tmp_path, 'rank == "1" and planted.calls == 3 and (print("asleep", flush=True), time.sleep(3600))')
    data = f"data.root={runs[0] / 'data' / 'toy_pick_16_seed0'}"
    with started(tmp_path, data, *TOGETHER, "hydra.run.dir=run", script=script) as process:
        assert any("asleep" in line for line in process.stdout)
        for number in (signal.SIGTERM, signal.SIGINT):  # the system would make one of two equal signals
            os.killpg(process.pid, number)
        _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode in (130, 143) and "Traceback" not in err


# ---- weights divided over the processes (FSDP)

SHARDED = ["trainer.precision=32-true", "ema.decay=0.9", "vision=huggingface", "language=huggingface"]


COUNTED = """
import vla_mini.training.module as module
from vla_mini.training.distributed import local, shard

def counted(policy, mesh):
    shard(policy, mesh)
    trained = [weight for name, weight in policy.named_parameters() if not name.startswith("language.")]  # which is frozen
    print("share", sum(local(weight).numel() for weight in trained) / sum(weight.numel() for weight in trained), flush=True)

module.shard = counted
"""


@pytest.fixture(scope="module")
def sharded(runs):
    """The folder in which two processes, each with a part of the weights, made the run `sharded`, and one the run `whole`."""
    folder, _, _ = runs
    arguments = ["trainer.devices=2", "trainer.strategy=fsdp", "data.batch_size=8", "hydra.run.dir=sharded"]
    script = folder / "sharded.py"
    script.write_text(COUNTED + EXEC)
    with started(folder, *WINDOWS, *SHARDED, *arguments, script=script) as process:
        out, err = process.communicate(timeout=TIMEOUT)
    assert err == "" and process.returncode == 0
    shares = [float(line.removeprefix("share ")) for line in out.splitlines() if line.startswith("share ")]
    assert len(shares) == 4 and all(0.4 < share < 0.6 for share in shares)  # of the policy and of its average, in each process
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert command("train", *SMOKE, *WINDOWS, *SHARDED, *ALONE, "hydra.run.dir=whole") == 0
    return folder


def check_alike(run: Path, expected: Path) -> None:
    """In float32: the saved policies, losses, gradients and updates."""
    found, other = (load_file(each / "policy" / "model.safetensors") for each in (run, expected))
    for name, tensor in other.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)
    rows, others = figures(run), figures(expected)
    names = [name for name in others if name.startswith(("train/", "validation/"))]
    assert len(names) > 4
    for name in [*names, "gradients/total", "gradients/vision", "gradients/clip_factor", "weights/vision", "updates/action"]:
        assert rows[name] == pytest.approx(others[name], rel=1e-4), name


def test_two_processes_with_a_part_of_the_weights_each_make_the_run_that_one_makes(sharded):
    """Windows of several micro-batches, a short one, clipping, validation, a moving average, a frozen language model."""
    check_alike(sharded / "sharded", sharded / "whole")
    assert len(list((sharded / "sharded/checkpoints/last.ckpt").glob("*.distcp"))) == 2


def test_divided_weights_are_resumed_by_another_number_of_processes(sharded, tmp_path, capsys):
    changed = ["trainer.max_steps=8", f"data.root={sharded / 'data' / 'toy_pick_16_seed0'}"]
    for name in ("sharded", "whole"):
        shutil.copytree(sharded / name, tmp_path / name, symlinks=True)
    for path in (tmp_path / "whole/checkpoints").glob("step_000005*"):  # so that it resumes after step 2, too
        path.unlink()
    damaged = tmp_path / "sharded/checkpoints/step_000005.ckpt/__1_0.distcp"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with started(tmp_path, "resume=sharded", *changed, "trainer.devices=1", "data.batch_size=16", settings=[]) as process:
        out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    assert "step_000005.ckpt is damaged" in err and "resumes after step 2" in out
    assert command("train", f"resume={tmp_path / 'whole'}", *changed) == 0
    check_alike(tmp_path / "sharded", tmp_path / "whole")
    capsys.readouterr()
    assert command("train", f"resume={tmp_path / 'sharded'}", "trainer.strategy=auto") == 2
    assert "trainer.strategy=auto with resume=: the checkpoints of fsdp are other files" in capsys.readouterr().err


# ---- as on two machines

APART = ["trainer.num_nodes=2", "trainer.strategy=ddp", "data.batch_size=8"]


def slurm(rank: int, port: int) -> dict[str, str]:
    """What srun sets in process 0 or 1 of two machines."""
    each = {
        "PROCID": rank,
        "NODEID": rank,
        "LOCALID": 0,
        "NTASKS": 2,
        "STEP_NUM_TASKS": 2,
        "NNODES": 2,
        "NTASKS_PER_NODE": 1,
        "NODELIST": "127.0.0.1",
    }
    return {f"SLURM_{name}": str(value) for name, value in each.items()} | {"MASTER_PORT": str(port)}


@contextmanager
def machine(kind: str, rank: int, port: int, folder: Path, *arguments: str, **options: Any) -> Iterator[subprocess.Popen]:
    """train.py on machine 0 or 1 of two, by torchrun or as srun starts it."""
    if kind == "srun":
        options["variables"] = slurm(rank, port)
    else:
        place = [f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        options["launcher"] = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *place]
    with started(folder, *arguments, **options) as process:
        yield process


@pytest.mark.parametrize("kind", ["torchrun", "srun"])
def test_two_machines_make_the_run_that_one_process_makes(kind, runs, tmp_path):
    folder, _, _ = runs
    arguments = [*WINDOWS, *APART, "evaluation.selection_episodes=3", f"hydra.run.dir={kind}"]
    with ExitStack() as stack:
        port = free_port()
        both = [stack.enter_context(machine(kind, rank, port, folder, *arguments)) for rank in (1, 0)]
        outputs = [process.communicate(timeout=TIMEOUT) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    (second, _), (first, _) = outputs
    assert "trained" not in second and "processes: 2" in first
    assert re.findall(r"in (\d+) selection scenes", first) == ["3"] * 3  # divided over both
    found, expected = (load_file(folder / run / "policy" / "model.safetensors") for run in (kind, "alone"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-10, atol=1e-13)
    names = ("train/loss", "validation/loss", "selection/success_rate")
    found, expected = figures(folder / kind), figures(folder / "alone")
    for name in names:
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name
    written, alone = ({str(path.relative_to(folder / run)) for path in (folder / run).rglob("*")} for run in (kind, "alone"))
    assert written == alone


def test_a_mistake_ends_both_machines(tmp_path):
    """The first says what is wrong, the second that the first one ended."""
    port = free_port()
    with machine("srun", 1, port, tmp_path, *APART) as second, machine("srun", 0, port, tmp_path, "seed=x", *APART) as first:
        assert "seed='x'" in first.communicate(timeout=TIMEOUT)[1]
        second.terminate()  # as srun does: it looks for the first one, and no work has begun
        second.communicate(timeout=TIMEOUT)
    assert first.returncode == 2 and second.returncode in (143, -signal.SIGTERM)  # before or while torch waits
    planted = tmp_path / "train.py"  # the first one joins, and fails
    planted.write_text(f"import vla_mini.setup.demonstrations as first\nfirst.check_start = lambda settings: 1 / 0\n{EXEC}")
    port = free_port()
    with (
        machine("srun", 1, port, tmp_path, *APART) as second,
        machine("srun", 0, port, tmp_path, *APART, script=planted) as first,
    ):
        assert "ZeroDivisionError" in first.communicate(timeout=TIMEOUT)[1]
        _, err = second.communicate(timeout=TIMEOUT)
    assert (first.returncode, second.returncode) == (1, 1)
    assert err == "train: process 1: the first process ended before training began\n"


def test_a_machine_that_never_comes(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(f"import vla_mini.commands.processes as processes\nprocesses.JOIN_SECONDS = 2\n{EXEC}")
    with machine("srun", 0, free_port(), tmp_path, *APART, script=script) as process:
        _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert err.startswith("train: process 0: the processes did not all come within 2 s: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [script]


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


@pytest.mark.parametrize(
    "variables, words",
    [
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 is set, but neither by torchrun nor by srun: start this command by one of them"),
        (slurm(0, 1), "trainer.num_nodes=1 trainer.devices=1, but srun started other processes: give trainer.num_nodes=2"),
        (
            {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "GROUP_WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "4"},
            "trainer.num_nodes=1 trainer.devices=1, but torchrun started other processes: "
            "give trainer.num_nodes=1 trainer.devices=4",
        ),
        (
            {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"},
            "SLURM_NNODES is not set: give srun or sbatch --nodes=N --ntasks-per-node=M",
        ),
    ],
    ids=["another_launcher", "srun", "torchrun", "srun_without_nodes"],
)
def test_processes_that_do_not_fit_the_settings(variables, words, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(RUN_DIR, raising=False)
    assert config.run("train", ["experiment=toy_pick_smoke"], lambda cfg: None) == 2
    assert capsys.readouterr().err.startswith(f"train: {words}")


def test_hydra_leaves_nothing_that_lightning_would_hand_on():
    config.load("train", ["experiment=toy_pick_smoke"])
    assert not HydraConfig.initialized()
