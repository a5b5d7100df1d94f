"""Which runs a comparison makes, in what order, how often, and what happens to those that fail; with a stand-in for
scripts/train.py that trains nothing."""

import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from vla_mini import config
from vla_mini.comparison import runs
from vla_mini.comparison.runs import (
    FINISHED,
    dry_run,
    exclusive,
    measured_speed,
    plan,
    train,
    train_all,
    with_budget,
)
from vla_mini.config.command_settings import Budget, CompareSettings
from vla_mini.config.sources import use_config_dir

STAND_IN = """
    import os, pathlib, sys, time
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    folder = pathlib.Path(settings["hydra.run.dir"])
    folder.mkdir()
    with open("order.txt", "a") as file:
        print(folder.name, settings["trainer.max_steps"], file=file)
    (folder / "half").write_text("done")
    if settings["action"] == "bins":
        sys.exit("Traceback, and so on\\ntrain: no space left on the device")
    if settings["action"] == "diffusion":
        os.kill(os.getpid(), 9)
    if settings["action"] == "flow" and "SLEEP" in os.environ:
        pathlib.Path("new").write_text(str(os.getpid()))
        os.rename("new", "pid")
        time.sleep(60)
    if "EDIT" in os.environ:
        with open(__file__, "a") as file:
            file.write(os.environ["EDIT"])
    speed = 2 if settings["action"] == "flow" else 5
    rows = [f"{step - 1},{3 + step / speed}" for step in (20, 40, 120)]  # three seconds to set up
    (folder / "metrics.csv").write_text("\\n".join(["step,seconds", *rows]))
"""
STEPS = Budget(steps=32, seconds=None, calibration_steps=120, selections=4)
SECONDS = STEPS.model_copy(update={"steps": None, "seconds": 30.0})
VARIANTS = {name: [f"action={name}"] for name in ("regression", "flow")}


def comparison(variants=None, *, seeds=(0,), budget=STEPS, launcher="local", submitit=None) -> CompareSettings:
    settings = {"question": None, "base": [], "parameters": {}, "output": None, "name": "comparison"}
    settings |= {"launcher": launcher, "submitit": submitit or {}}
    return CompareSettings(variants=variants or VARIANTS, seeds=seeds, budget=budget, **settings)


def flow_run():
    return plan(comparison(), "flow", ["action=flow", "trainer.max_steps=32"], seed=0)


@pytest.fixture(autouse=True)
def stand_in(tmp_path, monkeypatch):
    (tmp_path / "stand_in.py").write_text(textwrap.dedent(STAND_IN))
    monkeypatch.setattr(runs, "TRAIN", tmp_path / "stand_in.py")
    monkeypatch.chdir(tmp_path)


def order() -> list[list[str]]:
    """Of all runs so far: variant, purpose and seed, optimizer steps."""
    lines = [line.split() for line in Path("order.txt").read_text().splitlines()]
    return [[name.split("-")[0], name.split("-", 2)[2], steps] for name, steps in lines]


def test_every_variant_runs_with_every_seed_and_variants_take_turns():
    trained, speeds = train_all(comparison(seeds=[0, 3]))
    assert order() == [[variant, seed, "32"] for seed in ("seed0", "seed3") for variant in ("regression", "flow")]
    assert [(run.variant, run.seed) for run in trained] == [(v, s) for s in (0, 3) for v in ("regression", "flow")]
    assert all((run.folder / FINISHED).is_file() and (run.folder / "log.txt").is_file() for run in trained)
    assert [run.failure for run in trained] == [None] * 4 and speeds == {}


def test_finished_runs_are_not_repeated_and_unfinished_ones_are_renamed():
    first, _ = train_all(comparison())
    interrupted = first[1].folder
    (interrupted / FINISHED).unlink()
    assert train_all(comparison())[0] == first
    assert order()[2:] == [["flow", "seed0", "32"]]
    renamed = interrupted.with_name(f"{interrupted.name}.unfinished-1")
    assert (renamed / "half").read_text() == "done" and not (renamed / FINISHED).exists()
    train_all(comparison(VARIANTS | {"regression": ["action=regression", "optimizer.lr=1e-3"]}))
    assert order()[3:] == [["regression", "seed0", "32"]]  # other settings: a new run


def test_the_folder_of_a_run_depends_on_settings_and_code(monkeypatch):
    def folder(*arguments: str, seed: int = 0) -> str:
        return plan(comparison(), "a b/c", arguments, seed=seed).folder.name

    same = folder("action=flow")
    assert same == folder("action=flow", "optimizer.lr=0.05") == folder("experiment=toy_pick", "action=flow")  # the defaults
    assert same.startswith("a_b_c-") and same.endswith("-seed0")
    assert same.removesuffix("0") == folder("action=flow", seed=1).removesuffix("1")
    assert same != folder("action=flow", "optimizer.lr=0.06") and same != folder("action=bins")
    monkeypatch.setattr(runs, "code_digest", lambda script: "changed")
    assert same != folder("action=flow")


def test_the_folder_of_a_run_depends_on_the_files_that_its_settings_name(tmp_path):
    (tmp_path / "text/inner").mkdir(parents=True)
    language = ["language=huggingface", f"language.path={tmp_path / 'text'}"]
    vision = ["vision=torchvision", f"vision.path={tmp_path / 'weights.pt'}"]
    settings = {
        tmp_path / "text/inner/model.safetensors": language,
        tmp_path / "weights.pt": vision,
        tmp_path / "policy/manifest.json": [f"init_from={tmp_path / 'policy'}"],
        tmp_path / "data/meta.json": [f"data.root={tmp_path / 'data'}"],
    }
    for file, arguments in settings.items():
        file.parent.mkdir(exist_ok=True)
        folders = []
        for text in ("one", "two", "one"):
            file.write_text(text)
            folders.append(plan(comparison(), "a", arguments, seed=0).folder)
        assert folders[0] == folders[2] != folders[1], file


def test_comments_and_excluded_folders_do_not_change_the_digest_of_the_code(tmp_path, monkeypatch):
    (tmp_path / "package" / "reports").mkdir(parents=True)
    module, excluded = tmp_path / "package" / "policy.py", tmp_path / "package" / "reports" / "page.py"
    monkeypatch.setattr(runs, "PACKAGE", tmp_path / "package")
    digests = []
    for text, other in (("a = 1\n", "b = 1"), ("a = 1  # one\n\n", "b = 2"), ("a = 2\n", "b = 2")):
        module.write_text(text)
        excluded.write_text(other)
        digests.append(runs.code_digest(runs.TRAIN))
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(("edit", "fails"), [("\nedited = True\n", True), ("\n# a comment\n", False)])
def test_a_run_fails_if_the_code_changes_meanwhile(monkeypatch, edit, fails):
    monkeypatch.setenv("EDIT", edit)
    run = flow_run()
    assert (train(run) == runs.CHANGED) == fails
    assert (run.folder / FINISHED).exists() != fails


def test_the_folder_of_a_run_depends_on_the_newest_commit_of_a_hub_id(monkeypatch):
    folders = []
    for commit in ("abc", "def", "abc"):
        monkeypatch.setattr(runs.hub, "fetch", lambda path, commit=commit, **options: Path("snapshots") / commit)
        arguments = ["language=huggingface", "language.path=owner/name"]
        folders.append(plan(comparison(), "a", arguments, seed=0).folder)
    assert folders[0] == folders[2] != folders[1]


def test_failures_have_a_reason_and_the_other_runs_continue():
    (bins, diffusion, flow), _ = train_all(comparison({name: [f"action={name}"] for name in ("bins", "diffusion", "flow")}))
    assert bins.failure == "no space left on the device" and diffusion.failure.startswith("ended by SIGKILL; see ")
    assert flow.failure is None and (flow.folder / FINISHED).is_file()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the second leaves its log files open
@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_runs_are_jobs_of_a_cluster(cluster):
    jobs = {"launcher": "submitit", "submitit": {"cluster": cluster, "timeout_min": 10}}
    both = {"regression": ["action=regression"], "diffusion": ["action=diffusion"]}
    (regression, diffusion), _ = train_all(comparison(both, **jobs))
    assert regression.failure is None and (regression.folder / FINISHED).is_file()
    assert diffusion.failure is not None and "\n" not in diffusion.failure
    assert len(order()) == 2
    assert train_all(comparison(VARIANTS | both, **jobs))[0][0] == regression
    assert sorted(name for name, *_ in order()[2:]) == ["diffusion", "flow"]  # what finished is not repeated


def test_a_launcher_that_cannot_be_used_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"submitit=\{'?cluster'?: 'local', .*no_such"):
        train_all(comparison(launcher="submitit", submitit={"cluster": "local", "no_such": 1}))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="there is no SLURM here"):
        dry_run(comparison(launcher="submitit"))
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"the package submitit is missing: pip install 'vla-mini\[slurm\]'"):
        dry_run(comparison(launcher="submitit"))


def test_a_run_of_other_code_than_it_was_planned_with_does_not_begin():
    run = flow_run()
    assert train(run._replace(code="of before")) == runs.CHANGED
    assert not run.folder.exists()


def test_the_folder_of_a_run_depends_on_its_plugins(tmp_path, monkeypatch):
    (tmp_path / "my_heads").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    for name, file in (("my_heads", "my_heads/__init__.py"), ("my_head", "my_head.py")):
        folders = []
        for text in ("a = 1", "a = 2"):
            (tmp_path / file).write_text(text)
            folders.append(plan(comparison(), "a", [f"plugins=[{name}]"], seed=0).folder)
        assert folders[0] != folders[1]


def test_jobs_look_for_configs_where_the_comparison_does(tmp_path):
    (tmp_path / "mine").mkdir()
    use_config_dir(str(tmp_path / "mine"))
    try:
        assert flow_run().command[1:] == ["--config-dir", str(tmp_path / "mine")]
    finally:
        use_config_dir(None)


def test_a_budget_of_seconds_is_converted_to_steps_by_the_speed_of_each_variant():
    variants = {name: [f"action={name}"] for name in ("regression", "bins", "flow")}
    trained, speeds = train_all(comparison(variants, seeds=[0, 1], budget=SECONDS))
    assert speeds == {"regression": pytest.approx(5), "flow": pytest.approx(2)}
    calibrations = [[name, "calibration-seed0", "120"] for name in variants]
    measured = [["regression", "152"], ["flow", "60"]]  # steps: the nearest multiple of the number of selections
    assert order() == calibrations + [[name, f"seed{seed}", steps] for seed in (0, 1) for name, steps in measured]
    assert [run.variant for run in trained] == ["bins", *["regression", "flow"] * 2]  # the speed of bins is unknown
    assert [run.failure for run in trained] == ["no space left on the device", *[None] * 4]
    before = len(order())
    train_all(comparison(variants, seeds=[0, 1], budget=SECONDS))
    assert order()[before:] == [["bins", "calibration-seed0", "120"]]  # only the failed run is repeated


def test_every_run_is_evaluated_as_often_as_the_others():
    three_seconds = SECONDS.model_copy(update={"seconds": 3.0})
    for budget, speed in ((STEPS, None), *((three_seconds, speed) for speed in (8.0, 8.3, 20.4))):
        settings = config.load("train", with_budget(["action=flow"], budget, steps_per_second=speed))
        assert settings.trainer.max_steps / settings.evaluation.every_n_steps == 4  # the last evaluation is at the end
    without = STEPS.model_copy(update={"selections": None})
    assert with_budget([], without, steps_per_second=None) == ["trainer.max_steps=32"]
    odd = STEPS.model_copy(update={"steps": 61})
    assert with_budget([], odd, steps_per_second=None) == ["trainer.max_steps=61", "evaluation.every_n_steps=16"]


def test_the_first_steps_do_not_count_as_speed():
    run = plan(comparison(), "a", [], seed=0)
    run.folder.mkdir(parents=True)
    (run.folder / "metrics.csv").write_text("step,seconds\n9,50\n19,51\n29,53\n")
    assert measured_speed(run) == pytest.approx(20 / 3)


def test_an_interrupted_comparison_terminates_its_run(monkeypatch):
    monkeypatch.setenv("SLEEP", "1")
    run = flow_run()

    def interrupt() -> None:
        while not Path("pid").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        train(run)
    with pytest.raises(ProcessLookupError):
        os.kill(int(Path("pid").read_text()), 0)
    assert not (run.folder / FINISHED).exists()


def test_one_comparison_at_a_time(tmp_path, monkeypatch):
    here, jobs, others = comparison(), *(comparison(launcher="submitit", submitit={"cluster": name}) for name in "ab")
    with exclusive(here), exclusive(jobs):
        monkeypatch.chdir(tmp_path)
        for again, reason in ((here, "would slow each other down"), (others, "would train the same runs of comparison")):
            with pytest.raises(ValueError, match=f"another compare.py is running .* {reason}"), exclusive(again):
                pass
    with exclusive(here):
        pass


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["data.root=nowhere", "data.episodes=null"], "variant wrong: .*nowhere"),
        (["env=none"], "variant wrong: env=none has no success rate to compare"),
    ],
)
def test_variants_that_cannot_be_trained_or_compared_are_refused_before_any_run(arguments, text):
    with pytest.raises(ValueError, match=text):
        dry_run(comparison({"right": [], "wrong": arguments}))


def test_a_stage_is_checked_against_the_budget():
    variants = ["variants.whole=", "variants.staged=unfreeze_at.vision=6"]
    late = [
        "trainer=default",
        "budget.steps=500",
        "variants.late=unfreeze_at.vision=450",
    ]  # later than train.py's own last step
    assert len(config.load("compare", [*variants, *late]).variants) == 3
    for budget, text in (
        (
            ["budget.steps=4", "budget.selections=2"],
            "variant staged: unfreeze_at.vision=6 is never reached: trainer.max_steps=4",
        ),
        (["budget.seconds=30"], "variant staged: unfreeze_at.vision=6 counts steps"),
    ):
        with pytest.raises(ValueError, match=text):
            config.load("compare", [*variants, *budget])
    many_steps = STEPS.model_copy(update={"steps": 500})
    dry_run(comparison({"late": ["experiment=toy_pick_smoke", "unfreeze_at.vision=450"]}, budget=many_steps))
