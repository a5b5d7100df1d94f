"""The results of a comparison -> comparison.json, and a page, a table in Markdown and a picture of its curves beside it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from vla_mini.evaluation.curves import Curve
from vla_mini.evaluation.metrics import further_rates, words
from vla_mini.reports.drawing.charts import CYCLE, Panel, line_plot
from vla_mini.reports.page import NOTHING, explanations, number, percent, standalone, write_page
from vla_mini.utils import files

COSTS = ("parameters", "samples/s", "act", "to 90 %", "training")
LOSSES = "Losses of different action heads measure different things: compare only those of one head."


def write_comparison(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write comparison.json, .md, .html and, where there are curves, .svg into `folder`; returns the path of the page."""
    variants, panels = results["variants"], _panels(results)
    finished = {variant: found for variant, found in variants.items() if found["runs"]}
    meanings = explanations(next((found["runs"][0]["evaluation"]["env"] for found in finished.values()), None))
    legend = _legend(results, finished.values(), meanings)
    failures = [
        f"{variant}, seed {failure['seed']}: failed: {failure['reason']}"
        for variant, found in variants.items()
        for failure in found["failed"]
    ]
    markdown = [comparison_table(results), "\n".join(f"- {line}" for line in failures), legend]
    if panels:
        markdown += [f"![Success and loss of {', '.join(variants)}, by step and by second](comparison.svg)", f"*{LOSSES}*"]
        files.write_text(folder / "comparison.svg", standalone(line_plot("comparison", panels, columns=2)))
    files.write_json(folder / "comparison.json", results)
    files.write_text(folder / "comparison.md", "\n\n".join(filter(None, markdown)) + "\n")
    success = {variant: next(iter(found["splits"].values()))["success_rate"] for variant, found in finished.items()}
    rows = table_rows(results, intervals=False)
    return write_page(
        folder / "comparison.html",
        "comparison.html.j2",
        title=f"comparison · {results['name']}",
        results=results,
        success=success,
        best=max(success, key=success.__getitem__, default=None),
        splits=_names(finished.values(), "splits"),
        explanations=meanings,
        colours={variant: CYCLE[index % len(CYCLE)] for index, variant in enumerate(variants)},
        panels=[(line_plot(f"panel-{index}", [panel]), panel.title, f"by {panel.label}") for index, panel in enumerate(panels)],
        losses=LOSSES,
        legend=legend,
        tables=([row[: -len(COSTS)] for row in rows], [[row[0], *row[-len(COSTS) :]] for row in rows]),  # one would be too wide
        failures=failures,
        runs=[run["folder"] for found in variants.values() for run in found["runs"]],
        arguments=[f"{variant}: {' '.join(found['arguments'])}" for variant, found in variants.items()],
        versions=[f"{package:<14}{version}" for package, version in results["versions"].items()],
    )


def comparison_table(results: Mapping[str, Any]) -> str:
    """The table in Markdown, with aligned columns for a terminal."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in table_rows(results, intervals=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in (rows[0], rule, *rows[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in aligned)


def table_rows(results: Mapping[str, Any], *, intervals: bool) -> list[list[str]]:
    """The headings, then a row for each variant: success by split, further rates of the first split, checks, costs."""
    table = [_cells(variant, found, intervals=intervals) for variant, found in results["variants"].items()]
    headings = [*dict.fromkeys(heading for cells in table for heading in cells if heading not in COSTS), *COSTS]
    return [headings, *([cells.get(heading, NOTHING) for heading in headings] for cells in table)]


def _cells(variant: str, found: Mapping[str, Any], *, intervals: bool) -> dict[str, str]:
    """Heading -> text; only the name of a variant of which no run finished."""
    finished, failed = len(found["runs"]), len(found["failed"])
    cells = {"": f"{variant} ({finished} of {finished + failed} runs)" if failed else variant}
    if not finished:
        return cells
    for name, entry in found["splits"].items():
        bounds = " ({:.1f}–{:.1f})".format(*(100 * bound for bound in entry["success_ci95"])) if intervals else ""
        cells[words(name)] = percent(entry["success_rate"]) + bounds
    cells |= {name: percent(rate) for name, rate in further_rates(next(iter(found["splits"].values()))).items()}
    cells |= {words(name): percent(check["success_rate"]) for name, check in found["grounding"].items()}
    seconds, reached = found["training_seconds"], [time for time in found["seconds_to_90"] if time is not None]
    some = f" ({len(reached)} of {finished})" if len(reached) < finished else ""
    costs = (
        f"{found['parameters']:,}",
        number(found["samples_per_second"]),
        f"{found['act_milliseconds']:.1f} ms",
        f"{fmean(reached):.1f} s{some}" if reached else NOTHING,
        NOTHING if seconds is None else f"{seconds:,.0f} s",
    )
    return cells | dict(zip(COSTS, costs, strict=True))


def _names(found: Iterable[Mapping[str, Any]], kind: str) -> list[str]:
    """The splits, or the checks ("grounding"), that any variant was evaluated on."""
    return list(dict.fromkeys(name for one in found for name in one[kind]))


def _legend(results: Mapping[str, Any], finished: Iterable[Mapping[str, Any]], meanings: Mapping[str, str]) -> str:
    """What the columns are, and under which conditions the runs were trained and evaluated."""
    budget, machine = results["budget"], results["machine"]
    names = [name for name in _names(finished, "grounding") if name in meanings]
    checks = "".join(f"{words(name).capitalize()}: {meanings[name]}. " for name in names)
    amount = f"{budget['steps']:,} optimizer steps" if budget["steps"] else f"{budget['seconds']:g} s of training"
    seeds = f"seed{'s' * (len(results['seeds']) > 1)} {', '.join(map(str, results['seeds']))}"
    episodes = {run["evaluation"]["episodes"] for found in finished for run in found["runs"]}
    scenes = "".join(f", {number:,} scenes per split and seed" for number in episodes)
    hardware = f"{', '.join(machine['gpus']) or 'no GPU'}, {machine['cores']} cores of {machine['processor']}"
    return (
        f"Success on each split over all seeds, with Wilson's 95 % interval; other rates are those on the first split. "
        f"{checks}Act: batch size 1, one thread. To 90 %: training time until 90 % of the "
        f"selection scenes succeed, the mean over the seeds that reach it. Each run: {amount}; {seeds}{scenes}; {hardware}."
    )


def _panels(results: Mapping[str, Any]) -> list[Panel]:
    """Success and loss, by step and by second, where they were logged."""
    panels = []
    for kind, title, scale in (("success", "Success", "percent"), ("loss", "Loss", "log")):
        for column, label in ((0, "optimizer step"), (1, "second of training")):
            curves: dict[str, list[Curve]] = {variant: [] for variant in results["variants"]}
            for variant, found in results["variants"].items():
                for rows in filter(None, (run["curves"][kind] for run in found["runs"])):  # rows of step, second, value
                    curves[variant].append(Curve([row[column] for row in rows], [row[2] for row in rows]))
            if any(curves.values()):
                panels.append(Panel(title, label, curves, scale, smooth=scale == "log"))
    return panels
