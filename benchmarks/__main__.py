"""The command line of the benchmarks: `python -m benchmarks list | run | report`.

    python -m benchmarks list
    python -m benchmarks run quickstart --smoke
    python -m benchmarks run quickstart --help       (options of this table)
    python -m benchmarks run all --smoke
    python -m benchmarks run quickstart --workers 4       (or: --ray)
    python -m benchmarks report quickstart --markdown docs/page.md

Exit codes: 0 done; 1 a table failed; 2 wrong usage; 130 interrupted (finished rows
are kept: give the same command again to go on).
"""

import dataclasses
import itertools
import pathlib
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks import runner

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of every run."""

    smoke: bool = False
    """Shrink model, data and steps; records go to a folder of their own."""
    force: bool = False
    """Run every row again; earlier records are kept under stale/."""
    results: pathlib.Path = runner.RESULTS
    """Folder of the results."""
    workers: int | None = None
    """Share the rows out to so many processes, or tasks of a cluster."""
    ray: str | None = None
    """Run the workers on a Ray cluster: its address, or `auto`. Without either, or with
    `local`, on one node of its own: this machine."""


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """Options of a report."""

    smoke: bool = False
    """Report the smoke run."""
    results: pathlib.Path = runner.RESULTS
    """Folder of the results."""
    html: pathlib.Path | None = None
    """Where the page goes; by default beside the records."""
    markdown: pathlib.Path | None = None
    """A Markdown file whose tables of this name are made anew."""
    figures: pathlib.Path | None = None
    """A folder for those figures that have a name, as SVG files."""


@dataclasses.dataclass(frozen=True)
class ListOptions:
    """Options of the list."""

    results: pathlib.Path = runner.RESULTS
    """Folder of the results."""


def _parse(kind: type, arguments: Sequence[str], program: str, **options: Any) -> Any:
    """Parses options with tyro, which is only imported where there are some."""
    import tyro

    return tyro.cli(
        tyro.conf.configure(tyro.conf.FlagCreatePairsOff)(kind),
        args=list(arguments),
        prog=f"python -m benchmarks {program}",
        **options,
    )


def _parse_run(
    module: Any, arguments: Sequence[str], name: str
) -> tuple[RunOptions, Any]:
    """Parses the common options and those of the table's Config.

    Under `--smoke` the defaults are those of `Config().smoke()`, so an option that is
    given still holds. `--seed` is another name of a field `seeds`.
    """
    import tyro

    fields = {field.name for field in dataclasses.fields(module.Config)}
    if "seeds" in fields and "seed" not in fields:
        arguments = [
            f"--seeds{text[6:]}" if text.split("=")[0] == "--seed" else text
            for text in arguments
        ]
    default = module.Config()
    if "--smoke" in arguments:
        default = default.smoke()
    flat = tyro.conf.arg(name="")
    both = dataclasses.make_dataclass(
        "Options",
        [
            ("common", Annotated[RunOptions, flat], RunOptions()),
            ("config", Annotated[module.Config, flat], default),
        ],
        frozen=True,
    )
    both.__doc__ = module.__doc__
    parsed = _parse(both, arguments, f"run {name}")
    return parsed.common, parsed.config


def _list(arguments: Sequence[str], console: Console) -> int:
    """Shows every table: name, summary, rows done, cost."""
    options = _parse(ListOptions, arguments, "list") if arguments else ListOptions()
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("table", "rows", "cost", "about"):
        grid.add_column(name, justify="right" if name == "rows" else "left")
    for entry in runner.discover().values():
        done = len(
            list(runner.folder(options.results, entry.name, smoke=False).glob("*.json"))
        )
        grid.add_row(
            Text(entry.name, style="bold"),
            f"{done} / {entry.rows}" if entry.rows else f"{done}",
            Text(entry.cost),
            Text(entry.summary),
        )
    console.print(grid)
    return OK


def _with_node(arguments: Sequence[str]) -> list[str]:
    """Names the local node where `--ray` stands without an address."""
    pairs = itertools.zip_longest(arguments, arguments[1:], fillvalue="--")
    return [
        "--ray=local" if text == "--ray" and after.startswith("-") else text
        for text, after in pairs
    ]


_WHERE = ("--results", "--workers", "--ray")


def _command(name: str, arguments: Sequence[str]) -> str:
    """Writes the command into records, without where it ran or the results lie."""
    kept, skip = [], False
    for text in arguments:
        if not skip and text.split("=")[0] not in _WHERE:
            kept.append(text)
        skip = not skip and text in _WHERE
    return shlex.join(["python", "-m", "benchmarks", "run", name, *kept])


def _run_one(entry: runner.Entry, arguments: Sequence[str], console: Console) -> None:
    """Runs one table and shows its report."""
    module = runner.load(entry)
    options, config = _parse_run(module, arguments, entry.name)
    command = _command(entry.name, arguments)
    start = time.perf_counter()
    if options.ray is not None or options.workers is not None:
        done = _fan_out(entry, options, config, command)
    else:
        session = runner.Session(
            entry.name,
            options.results,
            smoke=options.smoke,
            force=options.force,
            command=command,
        )
        module.run(config, session)
        done = f"{len(session.written)} rows run, {len(session.reused)} resumed"
    seconds = time.perf_counter() - start
    _show_report(entry, options.results, console, smoke=options.smoke)
    console.print(f"{entry.name}: {done}, {seconds:.1f} s")


def _fan_out(
    entry: runner.Entry, options: RunOptions, config: Any, command: str
) -> str:
    """Runs one table by several workers; says what became of it."""
    from benchmarks import fanout

    if options.force or entry.name.startswith("speed/"):
        why = "--force" if options.force else "a table of timings"
        raise ValueError(
            f"benchmarks: {entry.name}: workers do not go with {why}. Run it without "
            "--workers and --ray."
        )
    mode = "smoke" if options.smoke else "full"
    results = options.results.resolve()
    claims = results / mode / ".claims" / entry.name
    request = fanout.Request(
        entry.name,
        entry.module,
        config,
        str(results),
        str(claims),
        options.smoke,
        command,
    )
    place = runner.folder(results, entry.name, smoke=options.smoke)
    before = {path: path.stat().st_mtime_ns for path in place.glob("*.json")}
    backend, workers = _backend(options)
    died = fanout.run(request, backend, workers)
    after = {path: path.stat().st_mtime_ns for path in place.glob("*.json")}
    new = sum(before.get(path) != stamp for path, stamp in after.items())
    return f"{new} rows run by {workers} workers, {died} of which were replaced"


def _backend(options: RunOptions) -> tuple[Any, int]:
    """Where workers run, and how many."""
    from benchmarks import fanout

    if options.ray is None:
        return fanout.Local(), options.workers or 0
    from benchmarks import ray_cluster

    cluster = ray_cluster.RayCluster(options.ray)
    return cluster, cluster.workers if options.workers is None else options.workers


def _show_report(
    entry: runner.Entry,
    results: pathlib.Path,
    console: Console,
    *,
    smoke: bool,
    page: pathlib.Path | None = None,
    markdown: pathlib.Path | None = None,
    figures: pathlib.Path | None = None,
) -> None:
    """Shows a report, writes its page, its tables into Markdown, its figures."""
    from benchmarks import report

    made = report.make_report(entry, results, smoke=smoke)
    report.render_terminal(made, console)
    beside = runner.folder(results, entry.name, smoke=smoke)
    path = page or beside.with_name(f"{beside.name}.html")
    report.write_page(made, path, results)
    console.print(f"page: {path}")
    if markdown is not None:
        old = markdown.read_text(encoding="utf-8")
        new = report.update_markdown(made, old)
        if new != old:
            markdown.write_text(new, encoding="utf-8")
        console.print(
            f"tables: {markdown} ({'changed' if new != old else 'up to date'})"
        )
    if figures is not None:
        for path in report.write_figures(made, figures):
            console.print(f"figure: {path}")


def _run_all(arguments: Sequence[str], console: Console) -> int:
    """Runs every table; a failure is shown and the others still run."""
    _parse(RunOptions, arguments, "run all")
    failed = []
    for entry in runner.discover().values():
        console.rule(Text(entry.name))
        try:
            _run_one(entry, arguments, console)
        except Exception:
            console.print(Text(traceback.format_exc()))
            failed.append(entry.name)
    if failed:
        console.print(f"failed: {', '.join(failed)}", style="red")
    return FAILED if failed else OK


def _run(name: str, arguments: Sequence[str], console: Console) -> int:
    """Runs one table, or all."""
    arguments = _with_node(arguments)
    if name == "all":
        return _run_all(arguments, console)
    _run_one(runner.find(name), arguments, console)
    return OK


def _report(name: str, arguments: Sequence[str], console: Console) -> int:
    """Reports one table, or all."""
    options = _parse(ReportOptions, arguments, f"report {name}")
    if name == "all" and (options.html or options.markdown):
        console.print("report all: --html and --markdown need one table", style="red")
        return USAGE
    entries = list(runner.discover().values()) if name == "all" else [runner.find(name)]
    for entry in entries:
        _show_report(
            entry,
            options.results,
            console,
            smoke=options.smoke,
            page=options.html,
            markdown=options.markdown,
            figures=options.figures,
        )
    return OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after `python -m benchmarks`; None takes the process's.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(highlight=False, markup=False, soft_wrap=not sys.stdout.isatty())
    if not words or words[0] in ("-h", "--help", "help"):
        console.print(Text((__doc__ or "").strip()))
        return OK if words else USAGE
    command, rest = words[0], words[1:]
    commands = {"run": _run, "report": _report}
    try:
        if command == "list":
            return _list(rest, console)
        if command not in commands or not rest or rest[0].startswith("-"):
            console.print(Text((__doc__ or "").strip()))
            return USAGE
        return commands[command](rest[0], rest[1:], console)
    except runner.UnknownTableError as error:
        Console(stderr=True, highlight=False, markup=False).print(
            Text(str(error)), soft_wrap=True
        )
        return USAGE
    except SystemExit as stop:  # tyro's help and usage errors
        return stop.code if isinstance(stop.code, int) else USAGE
    except KeyboardInterrupt:
        console.print(
            "interrupted: finished rows are kept; give the same command again"
        )
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
