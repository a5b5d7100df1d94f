"""A run's folder in, one self-contained report.html out. It shows what is there and leaves out what is not.

Read are config.yaml, metrics.csv, evaluation/metrics.json and evaluation/videos/: the files, not the program that wrote
them, so that a report can be made again, years later, of any run.
"""

import csv
import json
import math
import os
from pathlib import Path
from typing import Any

from vla_mini.evaluation.metrics import wilson
from vla_mini.pages import page
from vla_mini.pages.page import percent
from vla_mini.pages.plots import Curve, line_plot
from vla_mini.pages.versions import versions

SPLITS = {
    "seen": "new scenes, told in the words of training",
    "held_out_pairs": "colour and shape never asked for together in training",
    "held_out_wordings": "sentences never heard in training",
    "synonyms": "colour, shape and verb in words never heard in training",
    "synonyms_colours": "the colour in a word never heard in training",
    "synonyms_shapes": "the shape in a word never heard in training",
    "synonyms_verbs": "the verb in a word never heard in training",
}
COMPONENTS = ("vision", "language", "state", "trunk", "action")


def write_report(run_dir: Path) -> Path:
    """Writes `run_dir`/report.html and returns its path. Raises ValueError where there is no such folder."""
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"run folder {run_dir} does not exist")
    metrics = _read_json(run_dir / "evaluation" / "metrics.json", default={})
    curves = read_curves(run_dir / "metrics.csv")
    parts = [
        _headline(run_dir, metrics, curves),
        _splits(metrics),
        _grounding(metrics),
        _curves(curves),
        _episodes(run_dir / "evaluation" / "videos"),
        _provenance(run_dir),
    ]
    unfinished = run_dir / "report.html.partial"
    unfinished.write_text(page.page(f"vla-mini · {run_dir.name}", [part for part in parts if part]), encoding="utf-8")
    os.replace(unfinished, run_dir / "report.html")
    return run_dir / "report.html"


def read_curves(path: Path) -> dict[str, Curve]:
    """What Lightning's CSVLogger wrote: name -> values over the steps done. Its rows are sparse: a cell may be empty."""
    if not path.is_file():
        return {}
    points: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                if name != "step" and cell and row.get("step") and math.isfinite(float(cell)):
                    points.setdefault(name, []).append((float(row["step"]) + 1, float(cell)))  # Lightning counts from 0
    return {name: Curve(*zip(*sorted(pairs), strict=True)) for name, pairs in points.items()}


def _headline(run_dir: Path, metrics: dict[str, Any], curves: dict[str, Curve]) -> str:
    heading = " · ".join(filter(None, (metrics.get("env"), run_dir.name)))
    figures = {}
    if metrics:
        low, high = metrics["success_ci95"]
        figures["95 % interval"] = f"{100 * low:.1f} – {100 * high:.1f} %"
        figures["wrong object"] = percent(metrics["wrong_object_rate"])
        figures["steps an episode"] = f"{metrics['steps_mean']:.1f}"
    if "seconds" in curves:
        figures["training"] = f"{max(curves['seconds'].values):.0f} s"
        figures["optimizer steps"] = f"{max(curves['seconds'].steps):,.0f}"
    if not metrics:
        text = "This run has not been evaluated."
        return page.header(heading, number="–", unit="success", text=text, figures=figures, hero=None)
    figures["evaluation"] = f"{metrics['seconds']:.0f} s"
    return page.header(
        heading,
        number=f"{100 * metrics['success_rate']:.1f}",
        unit="% success",
        text=f"in closed loop, over {metrics['episodes']} scenes that training never saw.",
        figures=figures,
        hero=_hero(run_dir / "evaluation" / "videos"),
    )


def _hero(folder: Path) -> bytes | None:
    """The GIF of the first success."""
    index = _read_json(folder / "index.json", default=[])
    names = [entry["name"] for entry in index if entry["outcome"] == "success"]
    return (folder / f"{names[0]}.gif").read_bytes() if names else None


def _splits(metrics: dict[str, Any]) -> str:
    rows = []
    for name, split in metrics.get("splits", {}).items():
        note = f"wrong object {percent(split['wrong_object_rate'])}"
        if split["two_words"]["episodes"]:
            both = split["two_words"]
            note += f" · scenes that need both words {percent(both['success_rate'])} of {both['episodes']}"
        rows.append(
            page.rate_row(name.replace("_", " "), SPLITS.get(name, ""), split["success_rate"], split["success_ci95"], note=note)
        )
    if not rows:
        return ""
    text = f"The bar is the share of {metrics['episodes']} episodes; the whiskers are Wilson's 95 % interval."
    return page.section("Success", text, "<div class=rows>", *rows, "</div>")


def _grounding(metrics: dict[str, Any]) -> str:
    """Does it listen? Each check as one sentence and one bar, beside what chance would give."""
    checks = metrics.get("grounding", {})
    rows = []
    if swapped := checks.get("swapped"):
        note = f"It still picks the object that was named before in {percent(swapped['original_object_rate'])}."
        rows.append(
            _check("another object named", "the same scenes: it picks the one now named", swapped, "success_rate", note)
        )
    if blank := checks.get("blank"):
        chance = f"; a random pick would in {percent(blank['chance_rate'])}" if "chance_rate" in blank else ""
        picked = percent(blank["original_object_rate"])
        note = f"Without words it picks the object that would have been named in {picked}"
        rows.append(_check("nothing said", "the share that needs no words", blank, "original_object_rate", f"{note}{chance}."))
    if not rows:
        return ""
    text = "Does the policy listen? The same scenes and seeds, with the instruction changed. Dotted: chance."
    return page.section("Grounding", text, "<div class=rows>", *rows, "</div>")


def _check(name: str, explanation: str, check: dict[str, Any], key: str, note: str) -> str:
    interval = wilson(round(check[key] * check["episodes"]), check["episodes"])
    return page.rate_row(name, explanation, check[key], interval, note=note, chance=check.get("chance_rate"), colour="blue")


def _curves(curves: dict[str, Curve]) -> str:
    def chosen(**names: str) -> dict[str, Curve]:
        return {label: curves[name] for label, name in names.items() if name in curves}

    losses = chosen(train="train/loss", validation="validation/loss", action="train/action", keyframe="train/keyframe")
    success = chosen(**{"success": "selection/success_rate", "wrong object": "selection/wrong_object_rate"})
    gradients = chosen(**{component: f"gradients/{component}" for component in COMPONENTS})
    rate = chosen(rate="learning_rate")
    plots = []
    if losses:
        # A negative log-likelihood may fall below zero, where a logarithm ends.
        log = all(value > 0 for curve in losses.values() for value in curve.values)
        plots.append(page.plot(line_plot("loss", losses, log=log), "Loss", "logarithmic" if log else "and its terms"))
    if success:
        svg = line_plot("success", success, percent=True, mark_best="success" in success)
        plots.append(page.plot(svg, "Success during training", "closed loop, selection scenes"))
    if gradients:
        svg = line_plot("gradients", gradients, log=True)
        plots.append(page.plot(svg, "Gradient norm by component", "accumulated, before clipping"))
    if rate:
        plots.append(page.plot(line_plot("rate", rate, smooth=False), "Learning rate", "warm-up and decay"))
    if not plots:
        return ""
    return page.section("Training", "What was logged on the way.", "<div class=plots>", *plots, "</div>")


def _episodes(folder: Path) -> str:
    index = _read_json(folder / "index.json", default=[])
    parts = []
    for entry in sorted(index, key=lambda entry: entry["outcome"] != "success"):
        split = entry["split"].replace("_", " ")
        parts.append(
            page.episode(
                (folder / f"{entry['name']}.gif").read_bytes(),
                (folder / f"{entry['name']}.png").read_bytes(),
                instruction=entry["instruction"],
                outcome=entry["outcome"],
                details=f"{split}, episode {entry['episode']}, {entry['steps']} steps",
            )
        )
    if not parts:
        return ""
    text = "The first successes and the first failures of each split, by number: nobody picked them."
    return page.section("Episodes", text, *parts)


def _provenance(run_dir: Path) -> str:
    parts = []
    config = run_dir / "config.yaml"
    if config.is_file():
        parts.append(page.folded("Configuration", config.read_text(encoding="utf-8")))
    parts.append(page.folded("Versions", versions()))
    return page.section("Where it comes from", "All that is needed to do it again.", *parts)


def _read_json(path: Path, *, default: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
