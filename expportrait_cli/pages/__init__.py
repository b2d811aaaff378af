"""HTML pages that stand alone: one builder for all of them. No server, no script, nothing from the net.

What a page says is written by those who know it; charts are in `charts`.
"""

from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --paper: #fff; --faint: #667; --rule: #d8dbe2; --curve: #0b62c4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --paper: #15171b; --faint: #9aa3b2; --rule: #333842; --curve: #6db3ff }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1180px;
  margin: 2rem auto; padding: 0 1rem }
h1, h2 { font-weight: 600; line-height: 1.2 } h2 { margin-top: 2.5rem }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--rule); vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
code, .name { font-family: ui-monospace, monospace; font-size: .92em } .note, .range, figcaption { color: var(--faint) }
.range, figcaption { font-size: .85em; margin: .1rem 0 } .path { overflow-wrap: anywhere }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 1rem }
.grid h3 { margin: 0; font-size: .95em } svg { width: 100%; border: 1px solid var(--rule); border-radius: 4px }
polyline { fill: none; stroke: var(--curve); stroke-width: 1.4; stroke-linejoin: round } circle { fill: var(--curve) }
rect { fill: var(--curve) } .s1 { stroke: #d1495b } .s2 { stroke: #2a9d8f } .s3 { stroke: #b8860b }
.s4 { stroke: #8e5bd0 }
circle.s1 { fill: #d1495b } circle.s2 { fill: #2a9d8f } circle.s3 { fill: #b8860b } circle.s4 { fill: #8e5bd0 }
.key { display: inline-block; width: 1.6em; height: 0; border-top: 3px solid var(--curve); margin: 0 .4em .25em 1em }
.key.s1 { border-color: #d1495b } .key.s2 { border-color: #2a9d8f } .key.s3 { border-color: #b8860b }
.key.s4 { border-color: #8e5bd0 } .sheet { display: grid; grid-template-columns: repeat(5, 1fr); gap: .5rem }
summary { cursor: pointer; font-weight: 600; padding: .3rem 0 } details { border-bottom: 1px solid var(--rule) }
@media (max-width: 700px) { .row, .sheet { grid-template-columns: repeat(2, 1fr) } }
.row { display: grid; grid-template-columns: repeat(3, 1fr); gap: .6rem; max-width: 1000px }
figure { margin: 0 } img { width: 100%; display: block; border-radius: 4px }
"""


SERIES = 5
"""Colours of curves that share a picture; a sixth takes the first again."""


def page(title: str, body: Sequence[str]) -> str:
    """A whole page; title and body are HTML already."""
    about = '<meta name="viewport" content="width=device-width"><meta name="generator" content="expportrait">'
    head = f'<meta charset="utf-8">{about}<title>{title}</title>'
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>' + "\n".join(
        [f"<h1>{title}</h1>", *body, "</body></html>\n"]
    )


def table(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """A table; each head is (CSS class, text), and cells are HTML already."""
    top = "".join(f'<th class="{kind}">{text}</th>' for kind, text in heads)
    kinds = [kind for kind, _ in heads]
    lines = ("".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, row, strict=True)) for row in rows)
    inside = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class=wide><table><thead><tr>{top}</tr></thead><tbody>{inside}</tbody></table></div>"


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and what they are; plain text."""
    cells = "".join(f"<tr><th>{escape(name)}</th><td class=path>{escape(text)}</td></tr>" for name, text in rows)
    return f"<div class=wide><table>{cells}</table></div>"


def figures(pictures: Sequence[tuple[str, str]], kind: str, of: str) -> str:
    """Pictures side by side, as (caption, address), and of what they are.

    `kind` is the CSS class: `row` of three, `sheet` of five.
    """
    captions = [escape(caption) for caption, _ in pictures]
    inside = "".join(
        f'<figure><img alt="{caption} of {escape(of)}" src="{uri}"><figcaption>{caption}</figcaption></figure>'
        for caption, (_, uri) in zip(captions, pictures, strict=True)
    )
    return f"<div class={kind}>{inside}</div>"


def notes(lines: Sequence[str]) -> str:
    """Plain text, a paragraph a line."""
    return "".join(f"<p class=note>{escape(line)}</p>" for line in lines)


def key(names: Sequence[str]) -> str:
    """Which colour stands for what."""
    return "<p>" + "".join(f"<span class='key {colour(i)}'></span>{escape(n)}" for i, n in enumerate(names)) + "</p>"


def colour(index: int) -> str:
    """CSS class of the curve of that index."""
    return f"s{index % SERIES}"
