"""One self-contained page of a file of results, PNG files of its charts, and tables in a README.

The page needs nothing from elsewhere: no script, no font, no picture. It follows the reader's light or dark
colours and fits a phone. Everything in it comes from the file.
"""

import hashlib
import json
import re
from html import escape
from pathlib import Path

from fastdigit.errors import ConfigError
from fastdigit.files import atomic_write

from . import charts, tables

WORDS = 32  # characters; a cell with more is read like a sentence

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b1f24; --faint: #d4dae0; --quiet: #57636f;
  --ours: #c2410c; --peer: #7b8fa3; --stripe: #f5f7f9; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --ink: #e8ecf0; --faint: #3a444e;
  --quiet: #a3afba; --ours: #ff8a4c; --peer: #7890a6; --stripe: #1b2026; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .4rem; padding-top: .6rem; border-top: 1px solid var(--faint); }
p { margin: .3rem 0 .7rem; max-width: 46rem; }
.quiet, figcaption { color: var(--quiet); font-size: .9rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 1rem 0 0; font-size: .95rem; }
a { color: var(--ours); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem;
  margin: 1.2rem 0; }
.facts div { border: 1px solid var(--faint); border-radius: .5rem; padding: .7rem .9rem; }
.facts b { display: block; font-size: 1.5rem; line-height: 1.2; color: var(--ours);
  font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .5rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; color: var(--quiet); border-bottom: 1px solid var(--faint); white-space: normal;
  vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody tr:nth-child(even) { background: var(--stripe); }
tr.ours td:first-child { font-weight: 650; }
td.bar { width: 16%; min-width: 4rem; padding-right: 0; }
td.bar i { display: block; height: .75rem; border-radius: .15rem; background: var(--peer); }
tr.ours td.bar i { background: var(--ours); }
th.words, td.words { text-align: left; white-space: normal; }
td[colspan] { text-align: left; color: var(--quiet); white-space: normal; }
figure { margin: 1rem 0; }
figure svg { display: block; width: 100%; max-width: 42rem; height: auto; }
@media (max-width: 40rem) { h1 { font-size: 1.4rem; } body { padding: 1rem .8rem 3rem; }
  .minor { display: none; } table { font-size: .75rem; }
  th, td { padding: .25rem .22rem; white-space: normal; }
  td.bar { min-width: 2.2rem; width: 12%; } td:first-child { overflow-wrap: break-word; min-width: 6.6rem; } }
"""


def page(results):
    """The page, as text."""
    made = tables.of_results(results)
    drawn = charts.draw(results)
    sections, links = [], []
    for part, title in tables.TITLES.items():
        of_part = [table for table in made if table.name == part or table.name.startswith(f"{part}-")]
        if not of_part:
            continue
        links.append(f'<a href="#{part}">{escape(title)}</a>')
        content = "".join(map(_table, of_part))
        if part in drawn and part != "train":  # whose tables have bars
            content = _figure(*drawn[part]) + content
        sections.append(f'<section id="{part}">{content}</section>')
    described = _machine(results["machine"])
    if not drawn:
        described += (
            "<p class=quiet>Without matplotlib the page has no charts: pip install 'fastdigit[bench]'.</p>"
        )
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>fastdigit, measured</title><style>{STYLE}</style></head><body>"
        "<header><h1>fastdigit, measured</h1>"
        f"<p class=quiet>{escape(_where(results))}</p>{_facts(results)}<nav>{''.join(links)}</nav></header>"
        f"<main>{''.join(sections)}</main><footer>{described}</footer></body></html>\n"
    )


def _where(results):
    machine = results["machine"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; {machine['date']}; data: "
        f"{results['data']}; limits: {results['limits']['gflops']:.0f} GFLOP/s, "
        f"{results['limits']['copy']:.0f} GB/s copied"
    )


def _facts(results):
    """The few figures that most readers came for."""
    found = []
    trained = results.get("train", [])
    for network in trained if isinstance(trained, list) else []:
        for row in network["rows"]:
            if row["side"] == "fastdigit" and "ratio_to_best_peer" in row:
                best = network["best_peers"][row["precision"]]
                ratio, name = row["ratio_to_best_peer"]["median"], network["network"].replace("@", ", batch ")
                found.append((f"{ratio:.2f} ×", f"{best}, training {name}"))
    reached = results.get("accuracy", [])
    for row in reached if isinstance(reached, list) else []:
        if row["target"] == 0.98 and row["side"] == "fastdigit" and row.get("reached"):
            found.append((f"{row['seconds']:.2f} s", "to 98 % on MNIST"))
    boxes = (f"<div><b>{escape(figure)}</b>{escape(what)}</div>" for figure, what in found)
    return f"<div class=facts>{''.join(boxes)}</div>"


def _table(table):
    bars = table.bars or [None] * len(table.rows)
    kinds = table.kinds or [""] * len(table.rows)
    classes = [_class_of(table, place) for place in range(len(table.columns))]
    head = [f"<th{kind}>{escape(column)}</th>" for column, kind in zip(table.columns, classes, strict=True)]
    bar_class = "bar minor" if "bars" in table.minor else "bar"
    if table.bars:
        head.insert(1, f'<th class="{bar_class}"></th>')
    head, body = "".join(head), []
    for row, bar, kind in zip(table.rows, bars, kinds, strict=True):
        cells = [f"<td{place}>{_in_one_piece(cell)}</td>" for cell, place in zip(row, classes, strict=True)]
        if tables.is_reason(row):  # instead of figures
            cells[1:] = [f"<td colspan={len(row) - 1 + (bar is not None)}>{escape(row[1])}</td>"]
        elif bar is not None:
            cells.insert(1, f'<td class="{bar_class}"><i style="width:{max(bar, 0.004):.1%}"></i></td>')
        body.append(f"<tr class={kind or 'row'}>{''.join(cells)}</tr>")
    text = f"<p class=quiet>{escape(table.text)}</p>" if table.text else ""
    return (
        f"<h2>{escape(table.title)}</h2>{text}<div class=scroll><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _class_of(table, place):
    """Of a column's cells: whether they may be left out on a phone, and whether they are sentences, which
    need lines of their own and not one that is too long."""
    longest = max((len(row[place]) for row in table.rows if not tables.is_reason(row)), default=0)
    words = longest > (WORDS if place > 0 else 2 * WORDS)  # first come names, which may be long
    found = ["minor"] * (table.columns[place] in table.minor) + ["words"] * words
    return f' class="{" ".join(found)}"' if found else ""


def _in_one_piece(text):
    """A number and its unit stay on one line."""
    return re.sub(r"(?<=\d) (?=µs|ms|×|s\b)", "&nbsp;", escape(text))


def _figure(title, figure):
    return f"<h2>{escape(title)}</h2><figure><div class=scroll>{charts.as_svg(figure)}</div></figure>"


def _machine(machine):
    versions = f"Python {machine['python']}, {_listed(machine['versions'])}"
    own = {"python": machine["python"], **machine["versions"]}
    others = {name: found for name, found in machine.get("peers", {}).items() if found != own.get(name)}
    if others:
        versions += f"; the others with {_listed(others)}"
    return (
        "<h2>How it was measured</h2><p>Every side computes in a process of its own, the sides take turns, "
        "and one gets a time only after it has been checked: a kernel against float64, a training by the "
        "loss of its first steps. Figures are medians; rows whose quartiles lie further apart than 10 % are "
        "marked noisy.</p>"
        f"<p class=quiet>{escape(versions)}; commit {escape(str(machine['commit']))}.</p>"
    )


def _listed(versions):
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def write_page(results, path):
    atomic_write(Path(path), page(results).encode())


def write_pictures(results, folder):
    """PNG files of the charts in a folder: their paths. ConfigError without matplotlib."""
    drawn, folder = charts.draw(results), Path(folder)
    if not drawn:
        raise ConfigError("pictures need matplotlib: pip install 'fastdigit[bench]'")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, (_, figure) in drawn.items():
        paths.append(folder / f"bench_{name}.png")
        charts.save_png(figure, paths[-1], fingerprint(results))
    return paths


def fingerprint(results):
    """Of the results that a picture was made from; its file says so under "Source"."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()


MARK = re.compile(r"<!-- bench: (?P<name>\S+) -->\n.*?<!-- end of bench -->", re.DOTALL)


def filled(text, results):
    """A README's text with the tables of the results between their marks."""
    made = {table.name: table for table in tables.of_results(results)}

    def table(match):
        name = match["name"]
        if name not in made:
            raise ConfigError(f"the results have no table {name!r}; they have {', '.join(made)}")
        return f"<!-- bench: {name} -->\n{tables.markdown(made[name])}\n<!-- end of bench -->"

    return MARK.sub(table, text)


def fill(readme, results):
    """Put the tables between their marks in a README: whether it changed."""
    readme = Path(readme)
    before = readme.read_text(encoding="utf-8")
    after = filled(before, results)
    if after != before:
        atomic_write(readme, after.encode())
    return after != before
