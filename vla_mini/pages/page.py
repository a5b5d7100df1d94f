"""The look of a report: words and pictures in, one self-contained HTML page out. No script, no link, nothing fetched.

Every function returns HTML and escapes the text it is given.
"""

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #23262a; --quiet: #747a80; --rule: #e6e3de;
  --blue: #3a6ea5; --green: #3c8d68; --red: #bf5248; --amber: #b9822b; --violet: #7b67a6; --teal: #3b8c95;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #16181b; --card: #1d2024; --ink: #e6e5e1; --quiet: #969ba1; --rule: #32363b;
  --blue: #7aa8d8; --green: #6bbd95; --red: #e08178; --amber: #dbaa5b; --violet: #ab99d4; --teal: #6fbcc5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans); }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
h1 { font-size: 1rem; font-weight: 600; margin: 0; }
h2 { font-size: 1.2rem; font-weight: 600; margin: 3.5rem 0 .25rem; letter-spacing: -.01em; }
p { margin: .3rem 0 1rem; max-width: 42rem; text-wrap: pretty; }
.quiet, h1 span, figcaption, .facts dt { color: var(--quiet); font-weight: 400; }
.quiet { font-size: .875rem; }
.headline { font-size: clamp(3.4rem, 12vw, 6rem); font-weight: 600; letter-spacing: -.04em; line-height: 1;
  margin: 2.2rem 0 .3rem; font-variant-numeric: tabular-nums; }
.headline small { font-size: .45em; font-weight: 400; letter-spacing: 0; color: var(--quiet); }
header { display: grid; grid-template: auto 1fr auto auto / 1fr auto; gap: 0 3rem; align-items: end; }
header > * { grid-column: 1; min-width: 0; } header .facts { grid-column: 1 / 3; }
header .hero { grid-column: 2; grid-row: 1 / 4; width: 13rem; border-radius: 8px; display: block; }
.facts { display: flex; flex-wrap: wrap; gap: 1rem 2.6rem; margin: 1.8rem 0 0; padding: 1.1rem 0 0;
  border-top: 1px solid var(--rule); }
.facts dt { font-size: .8125rem; } .facts dd { margin: 0; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
.rows { margin: 1rem 0 0; }
.row { display: grid; grid-template-columns: 17rem 1fr 5.4rem; gap: .2rem 1.4rem; align-items: center;
  padding: .85rem 0; border-top: 1px solid var(--rule); }
.row .name b { font-weight: 600; display: block; } .row .note { grid-column: 2 / 4; }
.row .rate { text-align: right; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.row .name, .row .note { font-size: .875rem; color: var(--quiet); line-height: 1.4; }
.row .name b { font-size: 1rem; color: var(--ink); }
.track { position: relative; height: 1.5rem; }
.track i { position: absolute; display: block; top: 50%; }
.track .ground { left: 0; right: 0; height: 6px; margin-top: -3px; border-radius: 3px; background: var(--rule); }
.track .bar { left: 0; height: 6px; margin-top: -3px; border-radius: 3px; opacity: .5; background: currentColor; }
.track .whisker { height: 2px; margin-top: -1px; background: var(--ink); }
.track .whisker::before, .track .whisker::after { content: ""; position: absolute; top: -5px; width: 2px; height: 12px;
  background: var(--ink); }
.track .whisker::before { left: 0; } .track .whisker::after { right: 0; }
.track .dot { width: 12px; height: 12px; margin: -6px 0 0 -6px; border-radius: 50%; background: currentColor;
  border: 2px solid var(--paper); }
.track .chance { top: 0; bottom: 0; width: 0; border-left: 2px dotted var(--quiet); }
.axis { font-size: .75rem; color: var(--quiet); display: flex; justify-content: space-between; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.25rem;
  margin: 1rem 0 0; }
figure { margin: 0; } figcaption { font-size: .875rem; }
.plots figure { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 1rem 1rem .5rem; }
.plots figcaption b { color: var(--ink); font-weight: 600; }
.plots svg { display: block; width: 100%; height: auto; margin-top: .4rem; }
.episode { display: grid; grid-template-columns: 10rem 1fr; gap: .3rem 1.25rem; padding: 1.1rem 0;
  border-top: 1px solid var(--rule); align-items: center; }
.episode > * { min-width: 0; } /* the page says the instruction, so a GIF's own caption is cut off */
.episode .gif { width: 100%; display: block; border-radius: 6px; aspect-ratio: 1; object-fit: cover;
  object-position: top; }
.episode .words { font-size: 1.05rem; margin: 0 0 .1rem; } .episode .words::before { content: "“"; }
.episode .words::after { content: "”"; }
.episode .quiet { margin: 0 0 .7rem; }
.strip { overflow-x: auto; } .strip img { display: block; width: 100%; min-width: 34rem; border-radius: 4px; }
.green { color: var(--green); } .red { color: var(--red); } .blue { color: var(--blue); } .amber { color: var(--amber); }
.violet { color: var(--violet); } .teal { color: var(--teal); }
details { margin: 1rem 0 0; border-top: 1px solid var(--rule); padding-top: .9rem; }
summary { cursor: pointer; font-weight: 600; }
table { border-collapse: collapse; margin: 1rem 0 0; font-variant-numeric: tabular-nums; width: 100%; }
th { font-size: .8125rem; font-weight: 400; color: var(--quiet); }
th, td { padding: .45rem 0 .45rem 1.4rem; text-align: right; }
th:first-child, td:first-child { padding-left: 0; text-align: left; } td { border-top: 1px solid var(--rule); }
.wide { overflow-x: auto; margin: 1.4rem 0; } .wide td { white-space: nowrap; }
.wide svg { display: block; width: 100%; min-width: 46rem; height: auto; }
.bars { display: grid; grid-template-columns: minmax(3.6rem, max-content) 1fr; gap: .1rem .7rem;
  margin: .5rem 0 0; align-items: center;  font-size: .8125rem; line-height: 1.35; }
.bars b { font-weight: 400; color: var(--quiet); text-align: right; } .bars i { display: block; height: 7px; border-radius: 2px;
  background: currentColor; min-width: 1px; }
pre { font: .8125rem/1.5 var(--mono); overflow-x: auto; background: var(--card); border: 1px solid var(--rule);
  border-radius: 10px; padding: 1rem; }
@media (max-width: 44rem) {
  main { padding-top: 1.75rem; } header { display: block; } header .hero { margin: 1.5rem 0 0; }
  h2 { margin-top: 2.75rem; }
  .row { grid-template-columns: 1fr auto; } .row .track, .row .note { grid-column: 1 / 3; } .row .track { order: 3; }
  .row .note { order: 4; } .axis { display: none; }
  .episode { grid-template-columns: 1fr; } .episode .gif { width: 14rem; } }
"""


def page(title: str, body: Iterable[str]) -> str:
    """The whole document around the parts of its body."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(heading: str, text: str, *parts: str) -> str:
    """A heading, a sentence that says what is to be seen, and what is to be seen."""
    lines = (f"<h2>{escape(heading)}</h2>", f"<p class=quiet>{escape(text)}</p>", *parts)
    return "<section>\n" + "\n".join(lines) + "\n</section>"


def header(heading: str, *, number: str, unit: str, text: str, figures: Mapping[str, str], hero: bytes | None) -> str:
    """The one figure that matters, large, with the others in a row below and a GIF beside it."""
    picture = f'<img class=hero alt="an episode" src="{data_uri(hero, "gif")}">' if hero else ""
    return (
        f"<header><h1>vla-mini <span>· {escape(heading)}</span></h1><p class=headline>{escape(number)}"
        f"<small> {escape(unit)}</small></p><p>{escape(text)}</p>{picture}{facts(figures)}</header>"
    )


def facts(pairs: Mapping[str, str]) -> str:
    """A row of small figures with their names over them."""
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs.items())
    return f"<dl class=facts>{cells}</dl>"


def rate_row(
    name: str,
    explanation: str,
    rate: float,
    interval: Sequence[float],
    *,
    note: str = "",
    chance: float | None = None,
    colour: str = "green",
) -> str:
    """One rate as a bar from 0 to 1 with its interval as whiskers and, where there is one, chance as a dotted line."""
    low, high = interval
    marks = ['<i class="ground"></i>', f'<i class="bar" style="width:{100 * rate:.2f}%"></i>']
    if chance is not None:
        marks.append(f'<i class="chance" style="left:{100 * chance:.2f}%"></i>')
    marks.append(f'<i class="whisker" style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>')
    marks.append(f'<i class="dot" style="left:{100 * rate:.2f}%"></i>')
    label = f"{percent(rate)}, 95 % interval {percent(low)} to {percent(high)}"
    return (
        f"<div class=row><div class=name><b>{escape(name)}</b>{escape(explanation)}</div>"
        f'<div class="track {colour}" role=img aria-label="{escape(label)}">{"".join(marks)}</div>'
        f"<div class=rate>{percent(rate)}</div><div class=note>{escape(note)}</div></div>"
    )


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Names in the first column, figures in the others."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def bars(values: Iterable[tuple[str, float]], *, most: float, colour: str = "blue") -> str:
    """A row for each value, as long as its share of `most`."""
    rows = (
        f'<b>{escape(name)}</b><i class={colour} style="width:{100 * value / most if most else 0:.1f}%"></i>'
        for name, value in values
    )
    return f"<div class=bars>{''.join(rows)}</div>"


def quiet(text: str) -> str:
    return f"<p class=quiet>{escape(text)}</p>"


def plot(svg: str, heading: str, caption: str) -> str:
    return f"<figure><figcaption><b>{escape(heading)}</b> · {escape(caption)}</figcaption>{svg}</figure>"


def episode(gif: bytes, strip: bytes, *, instruction: str, outcome: str, details: str) -> str:
    """One episode: the animation, what was asked, how it went, and its film strip."""
    colour = "green" if outcome == "success" else "red"
    said = escape(instruction or "(no instruction)")
    return (
        f'<article class=episode><img class=gif alt="{said}: {escape(outcome)}" src="{data_uri(gif, "gif")}">'
        f"<div><p class=words>{said}</p><p class=quiet><b class={colour}>{escape(outcome)}</b> · {escape(details)}</p>"
        f'<div class=strip><img alt="frames, first to last" src="{data_uri(strip, "png")}"></div></div></article>'
    )


def picture_file(svg: str) -> str:
    """An <svg> of a page as a file of its own: on paper, in the light colours, whatever shows it."""
    light = dict(re.findall(r"--(\w+): ([^;]+);", STYLE.partition("@media")[0]))
    for name, value in light.items():
        svg = svg.replace(f"var(--{name})", value.replace('"', "'"))
    width, height = map(float, re.match(r'<svg viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    margin = 0.025 * width
    box = {"x": -margin, "y": -margin, "width": width + 2 * margin, "height": height + 2 * margin}
    view = " ".join(f"{value:g}" for value in box.values())
    ground = " ".join(f'{name}="{value:g}"' for name, value in box.items())
    size = f'width="960" height="{960 * box["height"] / box["width"]:.0f}"'
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="{view}"><rect {ground} fill="{light["paper"]}"/>'
    return opening + svg.partition(">")[2] + "\n"


def folded(summary: str, text: str) -> str:
    """A long text that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def data_uri(data: bytes, kind: str) -> str:
    """A picture within the page itself; `kind` is png or gif."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"
