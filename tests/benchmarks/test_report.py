"""Reports in a terminal, as a page, and as Markdown."""

import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from benchmarks import report, runner
from benchmarks.__main__ import main
from benchmarks.blocks import NOT_RUN
from benchmarks.figures import PALETTE, to_svg
from benchmarks.record import Records
from benchmarks.report import Figure, Heading, Table, Text

VOID = {"meta", "br", "path", "use", "rect", "img", "hr"}


class Checker(HTMLParser):
    """Checks that tags nest, and collects addresses and ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href")]
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def check(page: str) -> Checker:
    """Parses a page whose tags must nest."""
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


@pytest.fixture
def made(tables, tmp_path) -> report.Report:
    """The report of the made-up table, with rows for seeds 0 and 1."""
    assert (tables / "made_up.py").exists()
    assert main(["run", "made_up", "--results", str(tmp_path / "r")]) == 0
    return report.make_report(runner.find("made_up"), tmp_path / "r")


def terminal(made: report.Report) -> str:
    """What a terminal of 100 columns shows."""
    console = Console(width=100, file=io.StringIO())
    report.render_terminal(made, console)
    return console.file.getvalue()


def test_terminal_shows_values_and_what_was_not_run(made):
    shown = terminal(made)
    lines = [line.split() for line in shown.splitlines()]
    assert ["double-s0", "0.500"] in lines
    assert ["double-s1", "0.600"] in lines
    assert ["double-s2", "not", "run"] in lines
    assert "Results <raw> & `code`" in shown
    assert '[figure] Curves. Rises "fast".' in shown
    assert "From 2 records of" in shown


@pytest.mark.usefixtures("made")
def test_page_is_self_contained_and_escapes_text(tmp_path):
    page_path = tmp_path / "r" / "full" / "made_up.html"
    page = page_path.read_text()
    checker = check(page)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Results &lt;raw&gt; &amp; <code>code</code>" in page
    assert "&lt;b&gt;doubling&lt;/b&gt;" in page
    assert 'aria-label="Rises &quot;fast&quot;."' in page
    assert not re.search(r"https?:|//|@import|url\((?!#)", page)
    assert not {"script", "link", "img", "iframe"} & checker.tags
    outside = [link for link in checker.links if not link.startswith("#")]
    assert set(outside) == {"made_up/double-s0.json", "made_up/double-s1.json"}
    assert all((page_path.parent / link).exists() for link in outside)
    assert "prefers-color-scheme: dark" in page


def test_page_says_how_it_was_made(made):
    page = report.render_page("t", made.blocks, made.records, doc=made.entry.doc)
    record = made.records[0]
    for fact in (
        record.started[:10],
        f"jax {record.versions['jax']}",
        record.device["processor"],
        "<code>python -m benchmarks run made_up</code>",
        "2, 1.0 s in all",
        "Cost: 1 s",
    ):
        assert fact in page
    assert '<td class="r none">not run</td>' in page


def test_page_depends_on_its_records_only(made, tmp_path):
    first = report.render_page("t", made.blocks, made.records, doc="d")
    again = report.make_report(made.entry, tmp_path / "r")
    assert first == report.render_page("t", again.blocks, again.records, doc="d")


@pytest.mark.usefixtures("tables")
def test_page_without_records_and_with_problems(tmp_path):
    folder = tmp_path / "smoke" / "made_up"
    folder.mkdir(parents=True)
    (folder / "double-s0.json").write_text("{")
    made = report.make_report(runner.find("made_up"), tmp_path, smoke=True)
    assert terminal(made).count("not run") == 3
    report.write_page(made, tmp_path / "elsewhere" / "p.html", tmp_path)
    page = (tmp_path / "elsewhere" / "p.html").read_text()
    check(page)
    assert "Left out: double-s0.json: record: not JSON" in page
    assert "its numbers mean nothing" in page
    assert page.count(">not run<") == 3


def test_links_lead_from_anywhere_to_the_records(made, tmp_path):
    path = tmp_path / "other" / "deep" / "p.html"
    report.write_page(made, path, tmp_path / "r")
    links = [x for x in check(path.read_text()).links if x.endswith(".json")]
    assert links[0] == "../../r/full/made_up/double-s0.json"
    assert (path.parent / links[0]).exists()


@pytest.mark.usefixtures("made")
def test_markdown_is_made_anew_between_its_markers_only(tmp_path, capsys):
    page = tmp_path / "page.md"
    text = (
        "Before.\n\n<!-- records:made_up -->\nold\n<!-- end -->\n\nBetween.\n\n"
        "<!-- records:made_up -->\n<!-- end -->\n"
        "<!-- records:other -->\nkept\n<!-- end -->\n"
    )
    page.write_text(text)
    options = ["--results", str(tmp_path / "r"), "--markdown", str(page)]
    assert main(["report", "made_up", *options]) == 0
    once = page.read_text()
    assert once.startswith("Before.\n\n<!-- records:made_up -->\n\nA caption.\n\n")
    assert once.count("| double-s1 | 0.600 |") == 2
    assert once.count("| double-s2 | not run |") == 2
    assert "| row | acc\\|uracy |\n| :-- | --: |\n" in once
    assert "<!-- records:other -->\nkept\n<!-- end -->\n" in once
    assert "old" not in once
    assert main(["report", "made_up", *options]) == 0
    assert page.read_text() == once
    assert "up to date" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    [
        "no markers",
        "<!-- records:made_up -->\nnever ended\n",
        "<!-- records:made_up -->\n<!-- records:other -->\nx\n<!-- end -->\n",
    ],
)
def test_markdown_without_a_pair_of_markers_is_refused(made, text):
    with pytest.raises(ValueError, match="report: expected `<!-- records:made_up -->`"):
        report.update_markdown(made, text)


def test_cells_are_written_for_people():
    table = Table(
        ["name", "n", "acc", "time", "ok"],
        [
            ["a", 12_345, 0.98765, "1.50 [1.00…2.00]", True],
            ["b", None, np.float32(0.5), (0.25, 0.125, 0.5), False],
        ],
        digits={"time": 2},
    )
    assert table.text() == [
        ["a", "12,345", "0.988", "1.50 [1.00…2.00]", "yes"],
        ["b", NOT_RUN, "0.500", "0.25 [0.12, 0.50]", "no"],
    ]
    assert table.alignment() == "lrrll"
    assert report.show(float("nan")) == "nan"
    assert report.spread([0.5, None, 0.7], 2) == "0.60 [0.50…0.70]"
    assert report.spread([0.5]) == "0.500"
    assert report.spread([None]) is None


def test_values_line_up_whether_or_not_they_have_intervals():
    rows = [[9.5], [(10.25, 9.0, 11.0)], [None], ["8.1 [7.0…9.0]"]]
    table = Table(["ms"], rows, digits=1)
    cells = [row[0] for row in table.text()]
    assert cells == [
        "\u20079.5", "10.2 [9.0, 11.0]", NOT_RUN, "\u20078.1 [7.0…9.0]",
    ]  # fmt: skip
    assert table.alignment() == "l"
    assert Table(["a"], [["see [1]"]]).text() == [["see [1]"]]


def test_uneven_tables_are_refused():
    with pytest.raises(ValueError, match=r"Table: expected 2 cells .* in rows \[1\]"):
        Table(["a", "b"], [[1, 2], [3]])
    with pytest.raises(ValueError, match="expected one source for each of 1 rows"):
        Table(["a"], [[1]], sources=["x", "y"])


def test_plots_are_the_same_each_time_and_follow_the_page():
    def draw():
        return report.bars_with_intervals(
            ["one", "two"],
            {"A": [(0.5, 0.4, 0.7), None], "B & <C>": [0.6, (0.5, 0.5, 0.5)]},
            ylabel="accuracy",
        )

    svg = to_svg(draw, "f0-")
    assert svg == to_svg(draw(), "f0-")
    check(svg)
    assert "http" not in svg
    assert "var(--c0, #0072b2)" in svg
    assert "currentColor" in svg
    assert ">accuracy</text>" in svg
    assert ">not run</text>" in svg
    assert "B &amp; &lt;C&gt;" in svg
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    assert used <= set(re.findall(r'id="([^"]+)"', svg))


def test_figures_on_one_page_share_no_ids():
    def draw():
        return report.heatmap([[0.0, 1.0], [np.nan, 0.5]], ["a", "b"], ["c", "d"])

    blocks = [Heading("h"), Figure(draw, "One."), Figure(draw, "Two."), Text("t")]
    checker = check(report.render_page("t", blocks, Records()))
    assert len(checker.ids) == len(set(checker.ids))
    svg = to_svg(draw, "")
    written = re.findall(r">(\d\.\d\d)</text>", svg)
    assert written == ["0.00", "1.00", "0.50"]


def test_named_figures_become_files(tmp_path, made):
    draw = lambda: report.curves({"a": ([1, 2], [3, 4])}, xlabel="steps")  # noqa: E731
    blocks = [Figure(draw, "One.", name="one"), Figure(draw, "Two.")]
    named = dataclasses.replace(made, blocks=blocks)
    paths = report.write_figures(named, tmp_path / "figures")
    assert [path.name for path in paths] == ["one.svg"]
    first = paths[0].read_text()
    assert ">steps</text>" in first
    assert "fill: #ffffff" in first  # readable on a dark page too
    report.write_figures(named, tmp_path / "figures")
    assert paths[0].read_text() == first


def test_curves_differ_in_marker_as_well_as_colour():
    x = [1, 10, 100]
    figure = report.curves(
        {"a": (x, [1, 2, 3]), "b": (x, [2, 3, 4], [1, 2, 3], [3, 4, 5])}, logx=True
    )
    lines = figure.axes[0].lines
    assert [line.get_color() for line in lines] == list(PALETTE[:2])
    assert lines[0].get_marker() != lines[1].get_marker()
    assert figure.axes[0].get_xscale() == "log"
    assert len(figure.axes[0].collections) == 1


def test_logarithmic_ticks_are_plain_numbers():
    figure = report.curves({"loss": ([1, 2, 3], [2.0, 0.9, 0.25])}, logy=True)
    svg = to_svg(figure, "")
    assert ">1</text>" in svg
    assert ">0.4</text>" in svg
    assert "10^" not in svg


def test_plots_of_nothing_are_drawn():
    nothing = np.full((2, 2), np.nan)
    check(to_svg(report.heatmap(nothing, ["a", "b"], ["c", "d"]), ""))
    check(to_svg(report.bars_with_intervals([], {"a": []}), ""))
    shown = to_svg(report.bars_with_intervals(["x", "y"], {"a": [None, None]}), "")
    assert shown.count(">not run</text>") == 2
    check(to_svg(report.curves({}), ""))
    wide = to_svg(report.heatmap(np.eye(13), list("abcdefghijklm"), ["x"] * 13), "")
    assert "<image" not in wide
