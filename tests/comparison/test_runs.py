"""Which runs a comparison makes, in what order, how often, and what becomes of those that fail; with a stand-in for
scripts/train.py, which trains nothing and is done at once."""

import os
import signal
import textwrap
import threading
import time
from pathlib import Path

import pytest

from vla_mini import config
from vla_mini.comparison import runs
from vla_mini.comparison.runs import FINISHED, alone, budgeted, plan, rehearse, steps_per_second, train, train_all

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
BUDGET = {"steps": 32, "seconds": None, "calibration_steps": 120, "selections": 4}
ARGUMENTS = {name: [f"action={name}"] for name in ("regression", "flow")}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    (tmp_path / "stand_in.py").write_text(textwrap.dedent(STAND_IN))
    monkeypatch.setattr(runs, "TRAIN", tmp_path / "stand_in.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def order() -> list[list[str]]:
    """Of all runs so far: variant, what it was for, optimizer steps."""
    lines = [line.split() for line in Path("order.txt").read_text().splitlines()]
    return [[name.split("-")[0], name.split("-", 2)[2], steps] for name, steps in lines]


def test_every_variant_runs_with_every_seed_and_variants_take_turns():
    trained = train_all(ARGUMENTS, seeds=[0, 3], budget=BUDGET, within=Path("runs"))
    assert order() == [[variant, seed, "32"] for seed in ("seed0", "seed3") for variant in ("regression", "flow")]
    assert [(run.variant, run.seed) for run in trained.runs] == [(v, s) for s in (0, 3) for v in ("regression", "flow")]
    assert all((run.folder / FINISHED).is_file() and (run.folder / "log.txt").is_file() for run in trained.runs)
    assert trained.failures == {} and trained.steps_per_second == {}


def test_what_is_finished_is_not_repeated_and_what_is_not_is_moved_aside():
    first = train_all(ARGUMENTS, seeds=[0], budget=BUDGET, within=Path("runs")).runs
    interrupted = first[1].folder
    (interrupted / FINISHED).unlink()
    assert train_all(ARGUMENTS, seeds=[0], budget=BUDGET, within=Path("runs")).runs == first
    assert order()[2:] == [["flow", "seed0", "32"]]
    aside = interrupted.with_name(f"{interrupted.name}.unfinished-1")
    assert (aside / "half").read_text() == "done" and not (aside / FINISHED).exists()
    train_all(
        ARGUMENTS | {"regression": ["action=regression", "optimizer.lr=1e-3"]}, seeds=[0], budget=BUDGET, within=Path("runs")
    )
    assert order()[3:] == [["regression", "seed0", "32"]]  # of other settings: a new run


def test_a_run_is_known_by_its_settings_and_by_the_code(monkeypatch):
    def folder(*arguments: str, seed: int = 0) -> str:
        return plan("a b/c", arguments, seed=seed, within=Path("runs")).folder.name

    same = folder("action=flow")
    assert same == folder("action=flow", "optimizer.lr=0.05") == folder("experiment=toy_pick", "action=flow")  # the defaults
    assert same.startswith("a_b_c-") and same.endswith("-seed0")
    assert same.removesuffix("0") == folder("action=flow", seed=1).removesuffix("1")
    assert same != folder("action=flow", "optimizer.lr=0.06") and same != folder("action=bins")
    monkeypatch.setattr(runs, "code_digest", lambda: "changed")
    assert same != folder("action=flow")


def test_a_run_is_known_by_what_lies_where_its_settings_point(tmp_path):
    (tmp_path / "words/inner").mkdir(parents=True)
    language = ["language=huggingface", f"language.path={tmp_path / 'words'}"]
    vision = ["vision=torchvision", f"vision.path={tmp_path / 'weights.pt'}"]
    places = {
        tmp_path / "words/inner/model.safetensors": language,
        tmp_path / "weights.pt": vision,
        tmp_path / "policy/manifest.json": [f"init_from={tmp_path / 'policy'}"],
        tmp_path / "data/meta.json": [f"data.root={tmp_path / 'data'}"],
    }
    for place, arguments in places.items():
        place.parent.mkdir(exist_ok=True)
        folders = []
        for text in ("one", "two", "one"):
            place.write_text(text)
            folders.append(plan("a", arguments, seed=0, within=Path("runs")).folder)
        assert folders[0] == folders[2] != folders[1], place


def test_the_digest_is_that_of_code_not_of_comments(tmp_path, monkeypatch):
    (tmp_path / "package" / "pages").mkdir(parents=True)
    module, aside = tmp_path / "package" / "policy.py", tmp_path / "package" / "pages" / "page.py"
    monkeypatch.setattr(runs, "PACKAGE", tmp_path / "package")
    digests = []
    for text, other in (("a = 1\n", "b = 1"), ("a = 1  # one\n\n", "b = 2"), ("a = 2\n", "b = 2")):
        module.write_text(text)
        aside.write_text(other)
        digests.append(runs.code_digest())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(("edit", "counts"), [("\nedited = True\n", True), ("\n# a comment\n", False)])
def test_code_that_is_changed_while_a_run_is_made_spoils_it(monkeypatch, edit, counts):
    monkeypatch.setenv("EDIT", edit)
    run = plan("flow", ["action=flow", "trainer.max_steps=32"], seed=0, within=Path("runs"))
    assert (train(run) == "the code in vla_mini/ was changed while it ran: start it again") == counts
    assert (run.folder / FINISHED).exists() != counts


def test_a_hub_id_is_known_by_the_commit_that_it_stands_for(monkeypatch):
    folders = []
    for commit in ("abc", "def", "abc"):
        monkeypatch.setattr(runs.hub, "fetch", lambda path, commit=commit, **options: Path("snapshots") / commit)
        arguments = ["language=huggingface", "language.path=owner/name"]
        folders.append(plan("a", arguments, seed=0, within=Path("runs")).folder)
    assert folders[0] == folders[2] != folders[1]


def test_failures_are_told_and_the_others_go_on():
    variants = {name: [f"action={name}"] for name in ("bins", "diffusion", "flow")}
    trained = train_all(variants, seeds=[0], budget=BUDGET, within=Path("runs"))
    bins, diffusion, flow = trained.runs
    assert trained.failures[bins.folder] == "no space left on the device"
    assert trained.failures[diffusion.folder].startswith("ended by SIGKILL; see ")
    assert set(trained.failures) == {bins.folder, diffusion.folder} and (flow.folder / FINISHED).is_file()


def test_a_budget_of_seconds_is_turned_into_steps_by_each_variants_speed():
    variants = {name: [f"action={name}"] for name in ("regression", "bins", "flow")}
    budget = BUDGET | {"steps": None, "seconds": 30.0}
    trained = train_all(variants, seeds=[0, 1], budget=budget, within=Path("runs"))
    assert trained.steps_per_second == {"regression": pytest.approx(5), "flow": pytest.approx(2)}
    calibrations = [[name, "calibration-seed0", "120"] for name in variants]
    measured = [["regression", "152"], ["flow", "60"]]  # of steps, the nearest multiple of the number of selections
    assert order() == calibrations + [[name, f"seed{seed}", steps] for seed in (0, 1) for name, steps in measured]
    assert [run.variant for run in trained.runs] == ["bins", *["regression", "flow"] * 2]  # the first could not be measured
    assert list(trained.failures.values()) == ["no space left on the device"]
    before = len(order())
    train_all(variants, seeds=[0, 1], budget=budget, within=Path("runs"))
    assert order()[before:] == [["bins", "calibration-seed0", "120"]]  # figures are kept; only the failure is tried again


def test_every_run_is_evaluated_as_often_as_the_others():
    seconds = BUDGET | {"steps": None, "seconds": 3.0}
    for budget, speed in ((BUDGET, None), *((seconds, speed) for speed in (8.0, 8.3, 20.4))):
        cfg = config.load("train", budgeted(["action=flow"], budget, speed=speed))
        assert cfg.trainer.max_steps / cfg.evaluation.every_n_steps == 4  # every so many steps, the last time at the end
    assert budgeted([], BUDGET | {"selections": None}, speed=None) == ["trainer.max_steps=32"]
    told = budgeted([], BUDGET | {"steps": 61}, speed=None)  # of all variants alike
    assert told == ["trainer.max_steps=61", "evaluation.every_n_steps=16"]


def test_the_first_steps_do_not_count_as_speed(tmp_path):
    run = plan("a", [], seed=0, within=tmp_path)
    run.folder.mkdir()
    (run.folder / "metrics.csv").write_text("step,seconds\n9,50\n19,51\n29,53\n")
    assert steps_per_second(run) == pytest.approx(20 / 3)


def test_an_interrupted_comparison_takes_its_run_along(monkeypatch):
    monkeypatch.setenv("SLEEP", "1")

    run = plan("flow", ["action=flow", "trainer.max_steps=32"], seed=0, within=Path("runs"))

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
    with alone():
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match="another compare"), alone():
            pass
    with alone():
        pass


def test_what_does_not_fit_is_refused_before_any_run():
    variants = {"fine": [], "wrong": ["data.root=nowhere", "data.episodes=null"]}
    with pytest.raises(ValueError, match=r"variant wrong: .*nowhere"):
        rehearse(variants, BUDGET)


def test_a_stage_is_checked_against_the_budget(tmp_path):
    variants = {"whole": [], "staged": ["unfreeze_at.vision=6"]}
    told = [f"variants.{name}={' '.join(arguments)}" for name, arguments in variants.items()]
    cfg = config.load("compare", [*told, "trainer=default", "budget.steps=500", "variants.late=unfreeze_at.vision=450"])
    assert len(cfg.variants) == 3  # more steps than train.py takes by itself
    for budget, says in (
        (["budget.steps=4", "budget.selections=2"], "variant staged: unfreeze_at.vision=6 never comes: trainer.max_steps=4"),
        (["budget.seconds=30"], "variant staged: unfreeze_at.vision=6 counts steps"),
    ):
        with pytest.raises(ValueError, match=says):
            config.load("compare", [*told, *budget])
    rehearse({"late": ["experiment=toy_pick_smoke", "unfreeze_at.vision=450"]}, BUDGET | {"steps": 500})
