"""Jinja2 templates -> self-contained HTML pages: no script, no link, nothing that a browser would have to load.

    template + values ──write_page──▶ HTML page    <svg> of a page ──standalone──▶ SVG file in the light colours

All text is escaped, except for the SVGs that this package draws itself: they are `Markup`.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vla_mini import envs
from vla_mini.evaluation.metrics import further_rates, wilson, words
from vla_mini.utils.files import write_text

NOTHING = "–"  # shown where a value is missing


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Write the page of templates/`template`, with `values` as its variables, to `path`, which is returned.

    A variable that is missing is an error.
    """
    write_text(path, ENVIRONMENT.get_template(template).render(values))
    return path


def standalone(svg: Markup) -> str:
    """An <svg> of a page as a file of its own: on paper, with a margin, in the light colours."""
    style = files(__package__).joinpath("templates/style.css").read_text(encoding="utf-8")
    light = dict(re.findall(r"--(\w+): ([^;]+);", style.partition("@media")[0].replace('"', "'")))
    start, _, content = re.sub(r"var\(--(\w+)\)", lambda match: light[match[1]], svg).partition(">")
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', start).groups())
    margin = 0.025 * width
    x, y, width, height = -margin, -margin, width + 2 * margin, height + 2 * margin
    size = f'width="960" height="{960 * height / width:.0f}" viewBox="{x:g} {y:g} {width:g} {height:g}"'
    ground = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{light["paper"]}"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{ground}{content}\n'


def percent(rate: float) -> str:
    """0.973 -> "97.3 %"."""
    return f"{100 * rate:.1f} %"


def number(value: float | None) -> str:
    """Three digits, or all of the integer part; a dash for None."""
    return NOTHING if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def memory(size: int) -> str:
    """A number of bytes in MB or kB."""
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB" if size else "0"


def data_uri(data: bytes, kind: str) -> str:
    """An image file, "png" or "gif", as an address that holds all of it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def rates_text(entry: Mapping[str, Any]) -> str:
    """The rates of a split or check beside success, as "wrong object 0.5 % · two words: success 95.3 % of 127"."""
    rates = {("by chance" if name == "chance" else name): percent(rate) for name, rate in further_rates(entry).items()}
    subsets = {name: subset for name, subset in entry.items() if isinstance(subset, Mapping) and subset["episodes"]}
    rates |= {f"{words(n)}: success": f"{percent(s['success_rate'])} of {s['episodes']:,}" for n, s in subsets.items()}
    return " · ".join(f"{name} {rate}" for name, rate in rates.items())


def interval(entry: Mapping[str, Any]) -> Sequence[float]:
    """The 95 % interval of the success rate of a split or check."""
    return wilson(round(entry["success_rate"] * entry["episodes"]), entry["episodes"])


def explanations(env_id: str | None) -> dict[str, str]:
    """Split, check, task or group -> its explanation by the environment; empty where there is none or it is not installed."""
    try:
        spec = envs.get_spec(env_id) if env_id else None
    except ValueError:
        spec = None
    if spec is None:
        return {}
    groups = {group: ", ".join(tasks) for group, tasks in spec.groups.items()}
    return {**spec.splits, **spec.further_splits, **spec.checks, **spec.tasks, **groups}


FILTERS = (percent, number, memory, words, data_uri, rates_text, interval)
ENVIRONMENT = Environment(
    loader=PackageLoader("vla_mini.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
ENVIRONMENT.filters |= {function.__name__: function for function in FILTERS}
ENVIRONMENT.globals["NOTHING"] = NOTHING
