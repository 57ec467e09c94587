"""A report as one self-contained HTML page.

Styles and figures are inside, there is no script, and nothing is fetched. The page
depends on its records only: the same records give the same page.
"""

import html
import re
from collections.abc import Iterable, Sequence

from benchmarks.blocks import NOT_RUN, Block, Figure, Heading, Table, Text
from benchmarks.figures import to_svg
from benchmarks.record import Record, Records

_STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1b1b1e; --soft: #5c5c66;
  --rule: #d4d4d8; --strong: #74747c; --tint: #f3f3f1; --link: #005a8c;
  --warn: #8a3d00; --warn-tint: #fdf1e4;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #cc79a7; --c4: #e69f00;
  --c5: #56b4e9; }
@media (prefers-color-scheme: dark) { :root { --paper: #16171a; --ink: #e6e6e3;
  --soft: #a0a0a8; --rule: #36373d; --strong: #7c7c86; --tint: #1f2024;
  --link: #82bfe8; --warn: #f0b67f; --warn-tint: #2e241a;
  --c0: #4aa3df; --c1: #f08148; --c2: #35b892; --c3: #da98bc; --c4: #eeb440;
  --c5: #8accf2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55
  ui-sans-serif, system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
  -webkit-text-size-adjust: 100%; }
main, footer { max-width: 64rem; margin: 0 auto; padding: 0 1.25rem; }
header { margin: 3.5rem 0 2.25rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0; font-weight: 650;
  letter-spacing: -0.015em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.75rem 0 0.6rem; font-weight: 650;
  letter-spacing: -0.005em; }
h3 { font-size: 1rem; margin: 2rem 0 0.4rem; font-weight: 650; }
p { margin: 0 0 0.9rem; max-width: 42rem; }
.lede { color: var(--soft); font-size: 1.08rem; margin: 0.5rem 0 0; }
.warn { background: var(--warn-tint); color: var(--warn); padding: 0.6rem 0.9rem;
  border-radius: 4px; margin: 1rem 0 0; max-width: none; font-size: 0.93rem; }
a { color: var(--link); text-decoration-thickness: 1px; text-underline-offset: 2px; }
code { font: 0.9em ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
figure { margin: 1.5rem 0 2.25rem; }
figcaption { color: var(--soft); font-size: 0.9rem; line-height: 1.45;
  max-width: 42rem; }
figure.table figcaption { margin-bottom: 0.7rem; }
figure.plot figcaption { margin-top: 0.6rem; }
figure svg { display: block; }
figure svg text { font-family: ui-sans-serif, system-ui, "Segoe UI", "Helvetica Neue",
  Arial, sans-serif !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.93rem; line-height: 1.4;
  font-variant-numeric: tabular-nums lining-nums; border-top: 1.5px solid var(--strong);
  border-bottom: 1.5px solid var(--strong); min-width: min(100%, 28rem); }
th { font-weight: 600; text-align: left; vertical-align: bottom;
  border-bottom: 1px solid var(--strong); }
th, td { padding: 0.4rem 0.9rem; }
th:first-child, td:first-child { padding-left: 0.35rem; }
th:last-child, td:last-child { padding-right: 0.35rem; }
tbody tr + tr td { border-top: 1px solid var(--rule); }
tbody tr:hover td { background: var(--tint); }
.r { text-align: right; } .r, .n { white-space: nowrap; } .c { text-align: center; }
.none { color: var(--soft); font-style: italic; }
.links { font-size: 0.82rem; }
.notes { color: var(--soft); font-size: 0.85rem; margin: 0.6rem 0 0; }
footer { margin-top: 4rem; padding-bottom: 4rem; font-size: 0.88rem;
  color: var(--soft); }
footer h2 { font-size: 1rem; color: var(--ink); border-top: 1px solid var(--rule);
  padding-top: 1.5rem; margin: 0 0 0.9rem; }
dl { display: grid; grid-template-columns: 7.5rem 1fr; gap: 0.35rem 1rem; margin: 0; }
dt { color: var(--ink); } dd { margin: 0; overflow-wrap: anywhere; }
details { margin-top: 1.25rem; } summary { cursor: pointer; color: var(--ink); }
details .scroll { margin-top: 0.8rem; } footer table { font-size: 0.82rem; }
pre { white-space: pre-wrap; font: 0.82rem/1.5 ui-monospace, Menlo, Consolas,
  monospace; margin: 0.8rem 0 0; }
@media (max-width: 36rem) { header { margin: 2rem 0 1.5rem; }
  h1 { font-size: 1.5rem; } dl { grid-template-columns: 1fr; gap: 0.1rem; }
  dd { margin-bottom: 0.5rem; } th, td { padding: 0.35rem 0.55rem; } }
@media print { footer details { display: none; } tbody tr:hover td { background:
  none; } }
"""


def render_page(
    title: str,
    blocks: Sequence[Block],
    records: Records,
    *,
    doc: str = "",
    base: str = "",
    smoke: bool = False,
    problems: Sequence[str] = (),
) -> str:
    """Renders a report.

    Args:
        title: Title of the page.
        blocks: What to show.
        records: The records behind it, for the footer.
        doc: Docstring of the table; its first line is the subtitle.
        base: Address of the folder of the records relative to the page.
        smoke: Whether the records are of a smoke run, which the page then says.
        problems: Files that are no records, one sentence each.

    Returns:
        A whole HTML document.
    """
    summary = doc.strip().splitlines()[0] if doc.strip() else ""
    head = [f"<h1>{_escape(title)}</h1>"]
    if summary:
        head.append(f'<p class="lede">{_inline(summary)}</p>')
    if smoke:
        head.append(
            '<p class="warn">Smoke run: model, data and steps are shrunken. It shows '
            "that the table runs; its numbers mean nothing.</p>"
        )
    head += [f'<p class="warn">Left out: {_escape(text)}</p>' for text in problems]
    body = "\n".join(_block(block, i, base) for i, block in enumerate(blocks))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<main>\n<header>\n{chr(10).join(head)}\n</header>\n{body}\n</main>\n"
        f"{_footer(records, doc, base)}\n</body>\n</html>\n"
    )


def _block(block: Block, index: int, base: str) -> str:
    """Renders one block."""
    if isinstance(block, Heading):
        level = min(max(block.level, 2), 3)
        return f"<h{level}>{_inline(block.text)}</h{level}>"
    if isinstance(block, Text):
        parts = re.split(r"\n\s*\n", block.text.strip())
        return "\n".join(f"<p>{_inline(part)}</p>" for part in parts)
    if isinstance(block, Table):
        return _table(block, base)
    return _figure(block, index)


def _figure(block: Figure, index: int) -> str:
    """Renders a figure."""
    svg = to_svg(block.figure, f"f{index}-")
    label = _escape(block.alt or block.caption)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    caption = _caption(block.caption)
    return f'<figure class="plot">\n{svg}\n{caption}</figure>'


def _caption(text: str) -> str:
    """Renders a caption, if there is one."""
    return f"<figcaption>{_inline(text)}</figcaption>\n" if text else ""


def _table(table: Table, base: str) -> str:
    """Renders a table; a last column links to the records of each row."""
    align, links = table.alignment(), table.links()
    linked = any(links)
    heads = "".join(
        f'<th scope="col" class="{side}">{_inline(name)}</th>'
        for name, side in zip(table.columns, align, strict=True)
    )
    if linked:
        heads += '<th scope="col">Record</th>'
    rows = []
    for i, cells in enumerate(table.text()):
        row = "".join(map(_cell, cells, align))
        if linked:
            row += f'<td class="links">{_links(links[i], base)}</td>'
        rows.append(f"<tr>{row}</tr>")
    notes = "".join(f'<p class="notes">{_inline(note)}</p>\n' for note in table.notes)
    caption = _caption(table.caption)
    return (
        f'<figure class="table">\n{caption}<div class="scroll"><table>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody>\n"
        f"</table></div>\n{notes}</figure>"
    )


def _cell(text: str, side: str) -> str:
    """Renders a cell."""
    if text == NOT_RUN:
        return f'<td class="{side} none">{NOT_RUN}</td>'
    number = " n" if text.endswith("]") else ""  # an interval stays on one line
    return f'<td class="{side}{number}">{_inline(text)}</td>'


def _links(rows: Sequence[str], base: str) -> str:
    """Links to records: one by its name, several by numbers."""
    if len(rows) == 1:
        return _link(rows[0], base, rows[0])
    return " ".join(_link(row, base, str(i + 1)) for i, row in enumerate(rows))


def _link(row: str, base: str, text: str) -> str:
    """Links to one record file."""
    name = f"{row}.json"
    return (
        f'<a href="{_escape(base + name)}" title="{_escape(name)}">{_escape(text)}</a>'
    )


def _footer(records: Records, doc: str, base: str) -> str:
    """Renders how the page was made."""
    items = "\n".join(
        f"<dt>{_escape(name)}</dt><dd>{'<br>'.join(map(_inline, values))}</dd>"
        for name, values in provenance(records).items()
    )
    about = (
        f"<details><summary>About this table</summary><pre>{_escape(doc.strip())}</pre>"
        "</details>\n"
        if doc
        else ""
    )
    return (
        "<footer>\n<h2>How this was made</h2>\n"
        f"<dl>\n{items}\n</dl>\n{about}{_record_list(records, base)}</footer>"
    )


def _record_list(records: Records, base: str) -> str:
    """Renders the list of all records."""
    if not len(records):
        return ""
    rows = "\n".join(
        f"<tr><td>{_link(r.row, base, f'{r.row}.json')}</td>"
        f'<td class="r">{r.seed}</td><td class="r">{r.seconds:,.1f}</td>'
        f"<td>{_escape(_short(r))}</td><td>{_escape(r.started)}</td></tr>"
        for r in records
    )
    return (
        f"<details><summary>All {len(records)} records</summary>"
        '<div class="scroll"><table>\n<thead><tr><th>File</th><th class="r">Seed</th>'
        '<th class="r">Seconds</th><th>Commit</th><th>Started (UTC)</th></tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div></details>\n"
    )


def provenance(records: Records) -> dict[str, list[str]]:
    """Returns what made the records: each distinct command, commit, device, version."""
    if not len(records):
        return {"Records": ["none yet"]}
    days = sorted(record.started[:10] for record in records)
    seconds = sum(record.seconds for record in records)
    return {
        "Command": _distinct(f"`{record.command}`" for record in records),
        "Commit": _distinct(f"`{_short(record)}`" for record in records),
        "Device": _distinct(_device(record) for record in records),
        "Versions": _distinct(
            ", ".join(f"{name} {text}" for name, text in record.versions.items())
            for record in records
        ),
        "Date": [days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"],
        "Records": [f"{len(records)}, {_duration(seconds)} in all"],
    }


def _distinct(texts: Iterable[str]) -> list[str]:
    """Returns texts once each, in order of first use."""
    return list(dict.fromkeys(texts))


def _short(record: Record) -> str:
    """Writes a commit shortly, and whether the code differed from it."""
    commit = record.commit if record.commit == "unknown" else record.commit[:10]
    return f"{commit} + changes" if record.dirty else commit


def _device(record: Record) -> str:
    """Writes a device in one line."""
    d = {"platform": "?", "kind": "?", "count": 1, **record.device}
    kind = (
        d["platform"] if d["kind"] == d["platform"] else "{platform} {kind}".format(**d)
    )
    count = f"{d['count']} × " if d["count"] != 1 else ""
    processor, cores = d.get("processor", "?"), d.get("cores", "?")
    return f"{count}{kind}; {processor}, {cores} cores"


def _duration(seconds: float) -> str:
    """Writes a duration in a unit fit for people."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _escape(text: str) -> str:
    """Escapes text for HTML."""
    return html.escape(text, quote=True)


def _inline(text: str) -> str:
    """Escapes text, then sets what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _escape(text))
