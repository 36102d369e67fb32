"""The shell of a page and its tables: plain HTML, one style sheet, nothing from outside."""

import html
import re
from collections.abc import Iterable, Sequence
from string import Template

# The space in `91.2 %`, `1.5 MB`, `4 min 05 s`.
_BEFORE_UNIT = re.compile(r'(?<=\d) (?=(%|[kMGTPE]?B|[kMGTPE]|d|h|min|s)(?![^\W_]))')


class Raw(str):
  """Text that is HTML already; every other text is escaped."""

  __slots__ = ()


def escape(value: object) -> str:
  """HTML of a text; a number stays on one line with its unit."""
  if isinstance(value, Raw):
    return value
  return re.sub(_BEFORE_UNIT, '\u202f', html.escape(str(value)))


def element(tag: str, *children: object, **attributes: object) -> Raw:
  """`<tag attribute="...">children</tag>`; a trailing underscore in a name is dropped."""
  named = ''.join(f' {key.rstrip("_")}="{html.escape(str(v))}"' for key, v in attributes.items())
  return Raw(f'<{tag}{named}>{"".join(map(escape, children))}</{tag}>')


def table(head: Sequence[object], rows: Iterable[Sequence[object]], kind: str = 'wide') -> Raw:
  """A table whose first column names the row.

  Args:
    head: titles of the columns; none are shown where it is empty.
    rows: cells, text or `Raw`.
    kind: `pairs` for a name and a text, `wide` for a name and right-aligned numbers.
  """
  top = [element('thead', element('tr', *(element('th', t, scope='col') for t in head)))]
  body = [
    element('tr', element('th', first, scope='row'), *(element('td', cell) for cell in rest))
    for first, *rest in rows
  ]
  inner = element('table', *(top if head else []), element('tbody', *body), class_=kind)
  return element('div', inner, class_='scroll')


def section(title: str, *children: object, note: str = '') -> Raw:
  words = [element('p', note, class_='note')] if note else []
  return element('section', element('h2', title), *words, *children)


def figure(svg: str, title: str, caption: str, wide: bool = True) -> Raw:
  """A figure with a heading that says what it shows and a caption that says how to read it."""
  text = element('figcaption', element('b', title), ' ', caption)
  return element('figure', text, Raw(svg), class_='wide' if wide else 'half')


def document(title: str, *children: object) -> str:
  return _PAGE.substitute(title=html.escape(title), body='\n'.join(map(escape, children)))


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { color-scheme: light dark;
  --page: #f5f7f9; --card: #ffffff; --ink: #1c2430; --muted: #5b6776; --grid: #e4e8ed;
  --method: #1663b0; --lower: #c2500c; --upper: #0b7a5b; --warn: #fdf0e3; }
@media (prefers-color-scheme: dark) { :root {
  --page: #0f1318; --card: #171c23; --ink: #e8ecf1; --muted: #9aa7b6; --grid: #2b323c;
  --method: #6fb3ff; --lower: #ff9d5c; --upper: #45cfa2; --warn: #3a2816; } }
@media print { :root { --page: #ffffff; } section, figure { break-inside: avoid; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; font-size: 15px; }
main { max-width: 1280px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 34px; line-height: 1.2; letter-spacing: -0.015em; margin: 4px 0 10px; }
h2 { font-size: 19px; margin: 0 0 6px; }
p { margin: 0 0 10px; }
.kicker, .note, figcaption { color: var(--muted); }
.kicker { margin: 0; }
.note { font-size: 14px; max-width: 80ch; }
.lead { font-size: 20px; margin: 0 0 22px; }
.lead b.lower { color: var(--lower); } .lead b.upper { color: var(--upper); }
.method { color: var(--method); }
.badge { display: inline-block; padding: 1px 10px; border-radius: 99px; font-size: 13px;
  font-weight: 600; color: var(--card); background: var(--lower); vertical-align: 2px; }
section, figure, .tile { background: var(--card); border: 1px solid var(--grid);
  border-radius: 10px; }
section { padding: 20px 24px; margin: 20px 0 0; min-width: 0; }
.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 20px;
  margin-top: 20px; }
.grid > section { margin: 0; }
figure { margin: 0; padding: 18px 22px 14px; grid-column: span 2; min-width: 0; }
figure.half { grid-column: span 1; }
figcaption { font-size: 14px; margin-bottom: 10px; }
figcaption b { color: var(--ink); font-size: 16px; display: block; }
figure svg, .plot svg { display: block; width: 100%; height: auto; }
.tiles { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 12px;
  margin-top: 24px; }
.tile { padding: 14px 16px; }
.tile .value { font-size: 27px; font-weight: 650; letter-spacing: -0.01em; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.tile .value small { font-size: 15px; font-weight: 500; color: var(--muted); }
.tile .name { font-weight: 600; font-size: 14px; }
.tile p { margin: 4px 0 0; font-size: 13px; line-height: 1.4; color: var(--muted); }
.bar { position: relative; height: 14px; border-radius: 7px; margin: 46px 0 44px;
  background: var(--grid); }
.bar i { position: absolute; inset: 0 auto 0 0; border-radius: 7px; background: var(--method); }
.bar span { position: absolute; white-space: nowrap; font-size: 14px; transform: translateX(-50%);
  font-variant-numeric: tabular-nums; }
.bar .below { top: 20px; } .bar .above { bottom: 20px; font-weight: 650; }
.bar .first { transform: none; } .bar .last { transform: translateX(-100%); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 8px; text-align: right; border-bottom: 1px solid var(--grid);
  white-space: nowrap; vertical-align: top; }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child, .pairs td { text-align: left; } th:first-child { padding-left: 0; }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; white-space: normal; }
tbody th { font-weight: 500; }
tbody th div { white-space: normal; overflow-wrap: break-word; max-width: 30ch; }
.path { white-space: normal; overflow-wrap: anywhere; min-width: 18ch; }
.pairs th { color: var(--muted); width: 34%; }
.pairs td, .pairs th { white-space: normal; overflow-wrap: anywhere; }
td p.text { margin: 0; text-align: left; white-space: normal; color: var(--muted);
  min-width: 280px; font-size: 13px; }
.best { font-weight: 700; color: var(--method); } .faint { color: var(--muted); }
.missing { color: var(--lower); } code { font-size: 13px; overflow-wrap: anywhere; }
.warning { background: var(--warn); border: 2px solid var(--lower); border-radius: 10px;
  padding: 16px 20px; margin: 20px 0 0; }
.warning h2 { color: var(--lower); } .warning ul { margin: 6px 0 0; padding-left: 20px; }
footer { color: var(--muted); font-size: 13px; margin-top: 28px; }
@media (max-width: 820px) { .grid { grid-template-columns: minmax(0, 1fr); }
  figure, figure.half { grid-column: auto; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); } h1 { font-size: 26px; } }
</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")
