"""The house rules that can be checked by reading the package: names, docs, imports.

A test that fails lists every offender. A name is public when some `__all__` of the
package (in `lowrank/__init__.py` or in that of a public subpackage) lists it.
"""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple, get_origin

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lowrank"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Lowest first: a module may import from its own layer and from those before it.
# A folder stands for all it holds. Families come after all of these.
LAYERS = (
    ("_compat", "_show", "_base", "_files", "linalg"),
    (
        "_tree",
        "_select",
        "_kinds",
        "_axes",
        "_combine",
        "_adapted",
        "_check",
        "_many",
        "_partition",
        "_ranks",
        "_shared",
    ),
    ("operators",),
    ("_parts", "_route"),
    ("lifting",),
)
FAMILIES = ("adapters", "merging", "rram", "subspace", "analysis", "quantization")
FAMILIES += ("models", "training")
# Above the families: what a file holds becomes their transforms, and back.
GATES = ("interop",)
CORE_FILES = ("_base.py", "_combine.py", "_select.py", "_tree.py")

# Shared maths for the package itself: no part of the API.
INTERNAL = ("linalg",)

# What may be imported besides the standard library, and by whom.
CORE_PACKAGES = frozenset({"jax", "numpy", "jaxtyping", "lowrank"})
EXTRA_PACKAGES = {
    "_files": {"safetensors"},  # imported by models, interop and cli alone
    "analysis": {"matplotlib", "pandas"},  # found by plot() and to_pandas() alone
    "rram": {"scipy"},  # the assignment solver; JAX depends on it
    "models": {"flax", "jinja2", "safetensors", "tokenizers"},
    "training": {"flax", "optax", "orbax", "tqdm"},
    "interop": {"safetensors"},
    "cli": {"tyro"},
}
# Names bound to one JAX version; all but the first may be met in `_compat.py`.
PRIVATE = ("jax._src", "jaxlib")
VERSION_BOUND = ("jax.core", "jax.extend", "jax.interpreters")


def refuse(offenders: Iterable[str], advice: str) -> None:
    """Fail with all offenders, one a line (pytest cuts a long list in an assert)."""
    found = list(offenders)
    if found:
        pytest.fail("\n  ".join([f"{advice}:", *found]), pytrace=False)


# --- reading the sources ---------------------------------------------------------


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def where(path: Path, node: ast.AST | None = None) -> str:
    line = f":{node.lineno}" if node is not None else ""
    return f"{path.relative_to(ROOT)}{line}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part(module: str) -> str:
    """`lowrank.adapters._lora` belongs to `adapters`; the package itself to ``."""
    return (module.split(".") + [""])[1]


def imports(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """All modules that a file imports, at any depth, as absolute dotted names."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(path).split(".")
                up = node.level - (path.name == "__init__.py")
                base = ".".join([*package[: len(package) - up], *base.split(".")])
            # `from lowrank import adapters` names a module, `... import chain` not.
            for alias in node.names:
                full = f"{base}.{alias.name}".strip(".")
                yield node, full if is_module(full) else base.strip(".")


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def dotted(node: ast.AST) -> str:
    """`a.b.c` for that chain of attributes, else the empty string."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *parts[::-1]]) if isinstance(node, ast.Name) else ""


def uses(path: Path, names: tuple[str, ...]) -> list[str]:
    """Places that import, or reach by attribute, one of some dotted names."""
    found = []
    for node in ast.walk(parse(path)):
        reached = [dotted(node)]
        if isinstance(node, ast.Import):
            reached = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            reached = [f"{node.module}.{alias.name}" for alias in node.names]
        hits = (n for n in names for r in reached if f"{r}.".startswith(f"{n}."))
        found += [f"{where(path, node)} uses {name}" for name in hits]
    return sorted(set(found))


# --- public names ----------------------------------------------------------------


class Public(NamedTuple):
    """One public name: `lowrank.lora`, or `lowrank.merging.ties`."""

    name: str
    value: object


def public_modules() -> list[types.ModuleType]:
    names = [module_name(path) for path in SOURCES if path.name == "__init__.py"]
    names = [n for n in names if "._" not in n and part(n) not in INTERNAL]
    modules = [importlib.import_module(name) for name in names]
    return [module for module in modules if hasattr(module, "__all__")]


def public() -> list[Public]:
    return [
        Public(f"{module.__name__}.{name}", getattr(module, name, None))
        for module in public_modules()
        for name in module.__all__
        if not isinstance(getattr(module, name, None), types.ModuleType)
    ]


def defined_here(value: object) -> bool:
    return (getattr(value, "__module__", None) or "").startswith("lowrank")


def public_functions() -> list[tuple[str, ast.FunctionDef]]:
    """Each public function once, by its shortest name, as its syntax tree."""
    found: dict[object, str] = {}
    for name, value in sorted(public(), key=lambda item: len(item.name)):
        plain = inspect.unwrap(value) if callable(value) else value
        if isinstance(plain, types.FunctionType) and defined_here(plain):
            found.setdefault(plain, name)
    return [(name, syntax(function)) for function, name in found.items()]


def public_classes() -> list[tuple[str, type]]:
    found: dict[type, str] = {}
    for name, value in sorted(public(), key=lambda item: len(item.name)):
        if isinstance(value, type) and defined_here(value):
            found.setdefault(value, name)
    return [(name, cls) for cls, name in found.items()]


def syntax(function: types.FunctionType) -> ast.FunctionDef:
    return ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]


def arguments(function: ast.FunctionDef) -> list[ast.arg]:
    spec = function.args
    found = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]
    return [arg for arg in found if arg is not None and arg.arg not in ("self", "cls")]


def sections(doc: str) -> dict[str, str]:
    """The sections of a Google docstring, by title."""
    parts = re.split(r"^([A-Z]\w+):$", inspect.cleandoc(doc), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def described(section: str) -> set[str]:
    """Names that an Args or Attributes section describes: `name: ...`, `*names: ...`"""
    heads = re.findall(r"^ {2,4}(\S[^:\n]*):", section, re.MULTILINE)
    return {name for head in heads for name in re.findall(r"\w+", head)}


def gaps_in_docstring(function: ast.FunctionDef) -> list[str]:
    """What the docstring of a public function lacks."""
    parts = sections(ast.get_docstring(function) or "")
    names = {arg.arg for arg in arguments(function)}
    raises = any(isinstance(n, ast.Raise) and n.exc for n in ast.walk(function))
    returns = not (
        isinstance(function.returns, ast.Constant) and function.returns.value is None
    )
    wanted = {"Args": bool(names), "Returns": returns, "Raises": raises}
    gaps = [title for title, due in wanted.items() if due and title not in parts]
    gaps += sorted(names - described(parts.get("Args", ""))) if "Args" in parts else []
    if ">>>" not in parts.get("Example", parts.get("Examples", "")):
        gaps.append("Example")
    return gaps


def documented() -> set[str]:
    """Names that some page of the API or of a method shows by an autodoc directive."""
    pages = [*(ROOT / "docs/api").rglob("*.md"), *(ROOT / "docs/methods").rglob("*.md")]
    found = set()
    for page in pages:
        module = "lowrank"
        for kind, name in re.findall(r"^\.\. *(\w+):: *(\S+)", page.read_text(), re.M):
            if kind == "currentmodule":
                module = name
            elif kind in ("autofunction", "autoclass", "autodata", "autoexception"):
                found.add(name if name.startswith("lowrank.") else f"{module}.{name}")
    return found


def test_all_lists_what_there_is_once():
    wrong = []
    for module in public_modules():
        names = list(module.__all__)  # ruff (RUF022) keeps it sorted
        bad = {n for n in names if names.count(n) > 1 or not hasattr(module, n)}
        wrong += [f"{module.__name__}.{name}" for name in sorted(bad)]
    refuse(wrong, "__all__ lists it twice, or lists what is not there")


def test_every_public_name_has_its_place_in_the_docs():
    shown = documented()
    seen = {id(item.value) for item in public() if item.name in shown}
    missing = []
    for item in sorted(public(), key=lambda item: len(item.name)):
        if item.name not in shown and id(item.value) not in seen:
            missing.append(item.name)
            seen.add(id(item.value))  # a second name of the same object is no gap
    refuse(missing, "add `.. autofunction:: name` to docs/api or docs/methods")


def test_docs_show_only_public_names():
    known = {item.name for item in public()}
    refuse(sorted(documented() - known), "shown in docs/, but in no __all__")


def test_public_functions_have_whole_docstrings():
    gaps = [(name, gaps_in_docstring(node)) for name, node in public_functions()]
    refuse((f"{name}: {', '.join(gap)}" for name, gap in gaps if gap), "docs lack")


def test_public_classes_describe_their_fields():
    gaps = []
    for name, cls in public_classes():
        doc = cls.__doc__ or ""
        parts = [sections(doc), sections(cls.__init__.__doc__ or "")]
        lists = [p.get(t, "") for p in parts for t in ("Args", "Attributes")]
        shown = described("".join(lists))
        notes = vars(cls).get("__annotations__", {})
        fields = {f for f, note in notes.items() if get_origin(note) is not ClassVar}
        missing = sorted(f for f in fields - shown if not f.startswith("_"))
        if missing or not doc.strip():
            gaps.append(f"{name}: {', '.join(missing) or 'docstring'}")
    refuse(gaps, "Args or Attributes lack")


def test_public_arguments_and_results_are_annotated():
    bare = [
        f"{name}({arg.arg})"
        for name, node in public_functions()
        for arg in arguments(node)
        if arg.annotation is None
    ]
    bare += [f"{name} -> ?" for name, node in public_functions() if not node.returns]
    refuse(bare, "not annotated")


# --- imports ---------------------------------------------------------------------


def rank(name: str) -> int | None:
    for index, layer in enumerate(LAYERS):
        if name in layer:
            return index
    families, gates = name in FAMILIES, name in GATES
    return len(LAYERS) + gates if families or gates else None


def test_every_module_has_its_layer():
    parts = {part(module_name(path)) for path in SOURCES} - {"", "cli"}
    unknown = sorted(name for name in parts if rank(name) is None)
    refuse(unknown, "give each a place in LAYERS, FAMILIES or GATES above")


def test_imports_point_one_way():
    wrong = []
    for path in SOURCES:
        own = part(module_name(path))
        if own in ("", "cli"):
            continue
        for node, name in imports(path):
            if name.split(".")[0] != "lowrank":
                continue
            other = part(name)
            sideways = own in FAMILIES and other in FAMILIES and own != other
            upward = (rank(other) or 0) > (rank(own) or 0)
            if sideways or upward or other in ("", "cli"):
                wrong.append(f"{where(path, node)} {own} imports {name}")
    refuse(
        wrong, "base <- tree, select, axes <- operators <- lifting <- families <- gates"
    )


def test_packages_imported_are_those_allowed():
    wrong = []
    for path in SOURCES:
        allowed = CORE_PACKAGES | EXTRA_PACKAGES.get(part(module_name(path)), set())
        allowed |= sys.stdlib_module_names
        wrong += [
            f"{where(path, node)} imports {name}"
            for node, name in imports(path)
            if name.split(".")[0] not in allowed
        ]
    refuse(wrong, "the core needs jax, numpy and jaxtyping alone")


def test_importing_lowrank_loads_no_framework():
    code = "import sys, lowrank; print(*sys.modules)"
    loaded = run_python(code).split()
    heavy = {name for extra in EXTRA_PACKAGES.values() for name in extra}
    refuse(heavy & {name.split(".")[0] for name in loaded}, "loaded by the core")


def run_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, text=True
    )
    return result.stdout


def test_version_bound_names_stay_in_compat():
    sources = [path for path in SOURCES if path != PACKAGE / "_compat.py"]
    found = [hit for path in sources for hit in uses(path, VERSION_BOUND)]
    found += [hit for path in SOURCES for hit in uses(path, PRIVATE)]
    refuse(found, "keep it in lowrank/_compat.py, and jax._src nowhere")


def test_randomness_comes_from_keys():
    found = [hit for path in SOURCES for hit in uses(path, ("np.random",))]
    for path in SOURCES:
        for node, name in imports(path):
            if f"{name}.".startswith(("random.", "numpy.random.")):
                found.append(f"{where(path, node)} imports {name}")
    refuse(found, "draw with jax.random, from a key")


# --- rows of the laws ------------------------------------------------------------

# Factories of transforms without a row of their own in `tests/instances`, and why.
WITHOUT_ROW = {
    "lowrank.chain": "joins the members of other rows",
    "lowrank.identity": "its row is left out of the pairs: it changes nothing",
    "lowrank.rram.factors": "needs factors below: the row `lora+factors`",
    "lowrank.subspace.random": "the rows `subspace-...`, one for each projection",
    "lowrank.training.gather": "needs a mesh: tests/training/eight_devices.py",
}


def test_every_transform_has_a_row():
    from tests.adapters import pairs

    rows = {pairs.method_of(row.name) for row in pairs.plain_rows()}
    made = {
        name
        for name, function in public_functions()
        if isinstance(function.returns, ast.Name) and function.returns.id == "Transform"
    }
    without = {name for name in made if name.split(".")[-1] not in rows}
    refuse(sorted(without - set(WITHOUT_ROW)), "give each a row in tests/instances/")
    refuse(sorted(set(WITHOUT_ROW) - without), "no longer without a row")


# --- sizes -----------------------------------------------------------------------


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


@pytest.mark.parametrize(
    ("folder", "limit"), [("lowrank", 400), ("benchmarks", 400), ("tests", 600)]
)
def test_files_stay_small(folder, limit):
    sizes = {where(path): lines(path) for path in (ROOT / folder).rglob("*.py")}
    long = (f"{name}: {size}" for name, size in sizes.items() if size > limit)
    refuse(long, f"longer than {limit} lines")


def test_core_stays_small():
    sizes = {name: lines(PACKAGE / name) for name in CORE_FILES}
    if sum(sizes.values()) > 900:
        refuse((f"{n}: {size}" for n, size in sizes.items()), "over 900 lines in all")


# --- the checks themselves -------------------------------------------------------


def test_docstring_check_finds_each_gap():
    bad = ast.parse(
        'def f(x, y):\n    """Do.\n\n    Args:\n        x: One.\n    """\n'
        "    raise ValueError\n"
    ).body[0]
    assert gaps_in_docstring(bad) == ["Returns", "Raises", "y", "Example"]
    good = ast.parse(
        'def f(*xs: int) -> None:\n    """Do.\n\n    Args:\n        *xs: All.\n\n'
        '    Example:\n        >>> f(1)\n    """\n'
    ).body[0]
    assert gaps_in_docstring(good) == []


@pytest.mark.parametrize(
    "code",
    [
        "import jax._src.core",
        "from jax._src import core",
        "from jax import _src",
        "import jax\njax._src.core.eval_jaxpr",
    ],
)
def test_use_of_private_names_is_found(tmp_path, monkeypatch, code):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "module.py"
    path.write_text(code)
    assert uses(path, PRIVATE)
    assert not uses(path, VERSION_BOUND)
