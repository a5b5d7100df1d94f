"""The page, the table and the picture of a comparison: what comparison.json holds in, HTML, Markdown and SVG out."""

from collections.abc import Mapping, Sequence
from typing import Any

from vla_mini.pages import page
from vla_mini.pages.page import percent
from vla_mini.pages.plots import CYCLE, Curve, Panel, panel_plot

NOTHING = "–"  # in a cell
COSTS = ("parameters", "samples/s", "act", "to 90 %", "training")
LEGEND = (
    "Success on each split, all seeds pooled, with Wilson's 95 % interval. Wrong object: on seen scenes. Swapped: success with "
    "another object named. Blank: nothing said, and the object picked that would have been named: what needs no words. Act: "
    "batch 1, one thread. To 90 %: training time until 90 % of the selection scenes succeed, mean of the seeds that got there."
)
LOSSES = "Losses of different heads measure different things: only those of one head can be compared."


def comparison_page(results: Mapping[str, Any], *, explanations: Mapping[str, str]) -> str:
    """The page. `results` is what comparison.json holds; `explanations` say what the splits are, as far as that is known."""
    parts = [_headline(results), *_splits(results, explanations), _curves(results), _table(results), _provenance(results)]
    return page.page(f"vla-mini · {results['name']}", [part for part in parts if part])


def comparison_markdown(results: Mapping[str, Any]) -> str:
    """The table, with what it says and the picture beside it, to be put into a document."""
    failed = "\n".join(f"- {line}" for line in _failures(results))
    parts = [comparison_table(results), failed, f"{LEGEND} {_conditions(results)}"]
    if _panels(results):
        names = ", ".join(results["variants"])
        parts += [f"![Success and loss of {names}, by step and by second](comparison.svg)", f"*{LOSSES}*"]
    return "\n\n".join(part for part in parts if part) + "\n"


def comparison_table(results: Mapping[str, Any]) -> str:
    """The table in Markdown, its columns aligned, so that a terminal can show it, too."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in cells(results, intervals=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    aligned = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in (rows[0], rule, *rows[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in aligned)


def comparison_picture(results: Mapping[str, Any]) -> str | None:
    """The curves of all variants as one SVG file that stands alone; None where there are none."""
    panels = _panels(results)
    return page.picture_file(panel_plot("comparison", panels, columns=2)) if panels else None


def cells(results: Mapping[str, Any], *, intervals: bool) -> list[tuple[str, ...]]:
    """The table: its headings and a row for each variant. Splits and grounding checks are those that were evaluated."""
    splits, checks = ({name: None for found in _found(results) for name in found[kind]} for kind in ("splits", "grounding"))
    headings = ["", *(name.replace("_", " ") for name in splits), "wrong object", *checks, *COSTS]
    rows = [tuple(headings)]
    for variant, figures in results["variants"].items():
        total = len(figures["runs"]) + len(figures["failed"])
        if not figures["runs"]:
            rows.append((variant, "failed", *[NOTHING] * (len(headings) - 2)))
            continue
        row = [f"{variant} ({len(figures['runs'])} of {total} runs)" if figures["failed"] else variant]
        row += [_success(figures["splits"].get(name), interval=intervals) for name in splits]
        row.append(percent(next(iter(figures["splits"].values()))["wrong_object_rate"]))
        rates = {"blank": "original_object_rate"}
        row += [percent(figures["grounding"][name][rates.get(name, "success_rate")]) for name in checks]
        row += [f"{figures['parameters']:,}", _rounded(figures["samples_per_second"]), f"{figures['act_milliseconds']:.1f} ms"]
        rows.append((*row, _time_to_90(figures["seconds_to_90"]), _rounded(figures["training_seconds"], " s")))
    return rows


def _found(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The figures of the variants of which a run finished."""
    return [figures for figures in results["variants"].values() if figures["runs"]]


def _success(split: Mapping[str, Any] | None, *, interval: bool) -> str:
    if split is None:
        return NOTHING
    low, high = (100 * bound for bound in split["success_ci95"])
    return percent(split["success_rate"]) + (f" ({low:.1f}–{high:.1f})" if interval else "")


def _rounded(value: float | None, unit: str = "") -> str:
    return NOTHING if value is None else f"{value:,.0f}{unit}"


def _time_to_90(seconds: list[float | None]) -> str:
    reached = [value for value in seconds if value is not None]
    if not reached:
        return NOTHING
    some = f" ({len(reached)} of {len(seconds)})" if len(reached) < len(seconds) else ""
    return f"{sum(reached) / len(reached):.1f} s{some}"


def _failures(results: Mapping[str, Any]) -> list[str]:
    return [
        f"{variant}, seed {failure['seed']}: failed: {failure['reason']}"
        for variant, figures in results["variants"].items()
        for failure in figures["failed"]
    ]


def _conditions(results: Mapping[str, Any]) -> str:
    """Under what conditions all were trained and evaluated, in a sentence."""
    budget, found = results["budget"], _found(results)
    amount = f"{budget['steps']:,} optimizer steps" if budget["steps"] else f"{budget['seconds']:g} s of training"
    seeds = f"seed{'s' * (len(results['seeds']) > 1)} {', '.join(map(str, results['seeds']))}"
    scenes = f", {found[0]['runs'][0]['evaluation']['episodes']:,} scenes a split and seed" if found else ""
    machine = results["machine"]
    place = f"{machine['accelerator'] or 'no GPU'}, {machine['cores']} cores of {machine['processor']}"
    return f"Each run: {amount}; {seeds}{scenes}; {place}."


# ---- the page's parts


def _headline(results: Mapping[str, Any]) -> str:
    heading = f"comparison · {results['name']}"
    splits = {variant: figures["splits"] for variant, figures in results["variants"].items() if figures["runs"]}
    facts = {"variants": str(len(results["variants"])), "runs finished": str(sum(len(f["runs"]) for f in _found(results)))}
    if failed := len(_failures(results)):
        facts["runs failed"] = str(failed)
    question = f"{results['question']} " if results["question"] else ""
    if not splits:
        return page.header(
            heading, number=NOTHING, unit="success", text=f"{question}No run finished.", figures=facts, hero=None
        )
    rates = {variant: next(iter(found.values()))["success_rate"] for variant, found in splits.items()}
    best = max(rates, key=rates.__getitem__)
    text = f"{question}The highest is that of {best}; where intervals overlap, the order may be chance."
    number = f"{100 * rates[best]:.1f}"
    return page.header(heading, number=number, unit="% success", text=text, figures=facts, hero=None)


def _splits(results: Mapping[str, Any], explanations: Mapping[str, str]) -> list[str]:
    """A section for each split: each variant's rate, in the colour that it has in the curves."""
    sections = []
    for split in {name: None for figures in _found(results) for name in figures["splits"]}:
        rows = []
        for number, (variant, figures) in enumerate(results["variants"].items()):
            if rates := figures["runs"] and figures["splits"].get(split):
                low, high = map(percent, rates["success_ci95"])
                note = f"{low} to {high} of {rates['episodes']:,} · wrong object {percent(rates['wrong_object_rate'])}"
                colour = CYCLE[number % len(CYCLE)]
                rows.append(page.rate_row(variant, "", rates["success_rate"], rates["success_ci95"], note=note, colour=colour))
        text = explanations.get(split, "").capitalize()
        sections.append(page.section(split.replace("_", " "), text, "<div class=rows>", *rows, "</div>"))
    return sections


def _curves(results: Mapping[str, Any]) -> str:
    plots = [
        page.plot(panel_plot(f"panel-{number}", [panel]), panel.heading, f"by {panel.label}")
        for number, panel in enumerate(_panels(results))
    ]
    text = f"A curve for each seed; success is that of the selection scenes. {LOSSES}"
    return page.section("Training", text, "<div class=plots>", *plots, "</div>") if plots else ""


def _panels(results: Mapping[str, Any]) -> list[Panel]:
    """Success and loss, by step and by second, as far as they were logged."""
    panels = []
    for kind, heading, is_rate in (("success", "Success", True), ("loss", "Loss", False)):
        for column, label in ((0, "optimizer step"), (1, "second of training")):
            curves = {
                variant: [_curve(run["curves"][kind], column) for run in figures["runs"] if run["curves"][kind]]
                for variant, figures in results["variants"].items()
            }
            if any(curves.values()):
                panels.append(Panel(heading, label, curves, percent=is_rate))
    return panels


def _curve(rows: Sequence[Sequence[float]], column: int) -> Curve:
    return Curve([row[column] for row in rows], [row[2] for row in rows])


def _table(results: Mapping[str, Any]) -> str:
    rows = cells(results, intervals=False)  # they stand with the bars above
    success, costs = [row[: -len(COSTS)] for row in rows], [(row[0], *row[-len(COSTS) :]) for row in rows]
    tables = [page.table(head, rest) for head, *rest in (success, costs)]  # two, as one is wider than a page
    failed = [page.quiet(line) for line in _failures(results)]
    return page.section("All figures", f"{LEGEND} {_conditions(results)}", *tables, *failed)


def _provenance(results: Mapping[str, Any]) -> str:
    told = [f"{variant}: {' '.join(figures['arguments'])}" for variant, figures in results["variants"].items()]
    folders = [run["folder"] for figures in results["variants"].values() for run in figures["runs"]]
    parts = (("What train.py was told", told), ("The runs", folders), ("Versions", [results["versions"]]))
    folded = [page.folded(heading, "\n".join(lines)) for heading, lines in parts]
    return page.section("Where it comes from", "All that is needed to do it again.", *folded)
