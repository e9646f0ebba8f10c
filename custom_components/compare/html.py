"""A report as one HTML page that needs nothing besides itself: style and pictures are inside, there is no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from .sections import Section
from .tables import Cell, Table

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1d2329; --dim: #5c6670; --page: #f6f7f9; --card: #ffffff; --line: #d8dde3;
  --head: #eef1f4; --best: #dff0e6; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e7eb; --dim: #9aa5b0; --page: #14181c; --card: #1c2227; --line: #343c44; --head: #262e35; --best: #1d4030;
    --link: #7db8f0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(0.75rem, 3vw, 2.5rem) 4rem; max-width: 84rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.3rem 0 0.8rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 0.6rem; padding-top: 0.6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 0.4rem; }
p { max-width: 68rem; margin: 0.5rem 0; }
p.note { color: var(--dim); font-size: 0.86rem; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: 0.25rem 1.1rem; margin: 0.8rem 0; }
pre { background: var(--head); padding: 0.7rem 0.9rem; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: 0.86rem; }
.table { overflow: auto; max-height: 80vh; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  width: fit-content; max-width: 100%; }
table { border-collapse: separate; border-spacing: 0; font-size: 0.87rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.32rem 0.75rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
tr:last-child > td, tr:last-child > th { border-bottom: 0; }
thead th { position: sticky; top: 0; z-index: 2; background: var(--head); }
tbody th { position: sticky; left: 0; z-index: 1; background: var(--card); font-weight: 500; }
thead th:first-child { left: 0; z-index: 3; }
.n { text-align: right; }
.w { white-space: normal; min-width: 18rem; max-width: 48rem; overflow-wrap: anywhere; }
td.best { background: var(--best); font-weight: 650; }
figure { margin: 1.2rem 0; padding: 0.8rem; background: #ffffff; border: 1px solid var(--line); border-radius: 6px;
  width: fit-content; max-width: 100%; }
figure.dark { background: #000000; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { color: #48525c; font-size: 0.86rem; margin-top: 0.5rem; max-width: 62rem; }
figure.dark figcaption { color: #b6bec6; }
</style>
</head>
<body>
<h1>$title</h1>
$body
</body>
</html>
""")
LONG = 60  # characters from which a cell may be broken into lines


def _cell(cell: Cell, tag: str, is_number: bool) -> str:
    kinds = [*(["n"] if is_number else []), *(["best"] if cell.best else []), *(["w"] if len(cell.text) > LONG else [])]
    kind = f' class="{" ".join(kinds)}"' if kinds else ""
    return f"<{tag}{kind}>{escape(cell.text)}</{tag}>"


def _table(table: Table) -> str:
    head, *rows = table.rows
    numbers = [not any(c.isalpha() for row in rows for c in row[i].text) for i in range(len(head))]
    lines = [*([f"<h3>{escape(table.title)}</h3>"] if table.title else []), '<div class="table"><table>']
    lines.append(
        "<thead><tr>" + "".join(_cell(c, "th", n) for c, n in zip(head, numbers, strict=True)) + "</tr></thead>"
    )
    lines.append("<tbody>")
    for row in rows:
        tags = ["th", *["td"] * (len(row) - 1)]
        lines.append("<tr>" + "".join(_cell(c, t, n) for c, t, n in zip(row, tags, numbers, strict=True)) + "</tr>")
    lines.append("</tbody></table></div>")
    lines += [f'<p class="note">{escape(note)}</p>' for note in table.notes]
    return "\n".join(lines)


def _figure(path: Path, caption: str, dark: bool) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    kind = ' class="dark"' if dark else ""
    text = escape(caption)
    return (
        f'<figure{kind}><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
    )


def html_page(title: str, sections: Sequence[Section]) -> str:
    """The page; what comes from the user is escaped, and pictures are read from their files.

    Args:
        title: of the page.
        sections: in order; the one without a title is the introduction and stands before the list of contents.
    """
    body = []
    contents = "".join(f'<a href="#s{i}">{escape(s.title)}</a>' for i, s in enumerate(sections) if s.title)
    for i, section in enumerate(sections):
        if section.title:
            body.append(f'<h2 id="s{i}">{escape(section.title)}</h2>')
        body += [f"<p>{escape(p)}</p>" for p in section.paragraphs]
        if section.code:
            body.append(f"<pre><code>{escape(section.code)}</code></pre>")
        if not section.title:
            body.append(f"<nav>{contents}</nav>")
        body += [_table(t) for t in section.tables]
        body += [_figure(f.path, f.caption, f.dark) for f in section.figures]
    return PAGE.substitute(title=escape(title), body="\n".join(body))
