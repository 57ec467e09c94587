"""The program: its commands on tiny files, its exit codes, its help."""

import json
import os
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import lowrank as lrk
from lowrank import _files
from lowrank.cli import COMMANDS, main
from lowrank.interop import load_peft, load_state, save_state
from lowrank.interop._adapter import Factors, write_adapter

SHAPES = {"one": (3, 4), "two": (3, 4)}  # [out, in]


def number(*shape, by=1.0):
    """Numbers of no pattern in [-1, 1]."""
    return np.cos(by * np.arange(np.prod(shape), dtype=np.float32) ** 2).reshape(shape)


def adapter(folder, rank=2, by=1.0, scale=1.5, **options):
    """An adapter of two Linear layers."""
    modules = {}
    for name, (m, n) in SHAPES.items():
        by += 1
        pair = number(rank, n, by=by), number(m, rank, by=by / 3)
        modules[name] = Factors(*pair, None, scale, False)
    write_adapter(folder, modules, **options)
    return folder


@pytest.fixture
def pair(tmp_path):
    folder = tmp_path / "zwei Wörter"
    return adapter(folder / "a", by=0.7), adapter(folder / "b", rank=1, by=1.3)


@pytest.fixture(scope="module")
def params():
    return {name: {"kernel": jnp.zeros((n, m))} for name, (m, n) in SHAPES.items()}


@pytest.fixture
def base(tmp_path):
    """A checkpoint in two shards, with an embedding, a bias and integers."""
    folder = tmp_path / "base"
    folder.mkdir()
    parts = {
        "a.safetensors": {
            "model.one.weight": number(3, 4, by=0.3),
            "model.embed_tokens.weight": number(7, 4),
        },
        "b.safetensors": {
            "model.two.weight": number(3, 4, by=0.9).astype(jnp.bfloat16),
            "model.two.bias": number(3),
            "steps": np.arange(3),
        },
    }
    for name, tensors in parts.items():
        _files.write_tensors(folder / name, tensors)
    where = {key: name for name, tensors in parts.items() for key in tensors}
    _files.write_json(folder / _files.INDEX, {"weight_map": where})
    (folder / "config.json").write_text("{}")
    return folder


def run(capsys, *words):
    """Exit code, lines of the output, text of the errors."""
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def rows(capsys, *words):
    """The JSON objects that a command prints."""
    code, out, err = run(capsys, *words, "--json")
    assert (code, err) == (0, "")
    return [json.loads(line) for line in out]


def delta(folder, params):
    tree = jax.jit(lrk.materialize)(load_peft(folder, params).adapted)
    return {name: np.asarray(own["kernel"]) for name, own in tree.items()}


def test_inspect_shows_an_adapter(pair, params, capsys):
    *found, total = rows(capsys, "inspect", pair[0])
    norms = {name: np.linalg.norm(x) for name, x in delta(pair[0], params).items()}
    assert {row["module"]: row["norm"] for row in found} == pytest.approx(norms, 1e-5)
    assert [found[0][k] for k in ("kind", "shape", "rank", "scale")] == [
        "linear",
        [4, 3],
        2,
        1.5,
    ]
    assert total["total"]["parameters"] == 2 * 2 * (4 + 3)
    code, out, _ = run(capsys, "inspect", pair[0])
    assert code == 0
    assert out[1].split() == [
        "module", "kind", "shape", "rank", "scale", "norm", "lengths", "parameters"
    ]  # fmt: skip
    assert out[-1].strip().startswith("2 modules, 28 parameters")


def test_inspect_counts_what_a_selection_touches(base, tmp_path, capsys):
    *found, total = rows(capsys, "inspect", base, "--select", "weight$", "--rank", 2)
    assert {row["tensor"]: row["added"] for row in found} == {
        "model.one.weight": 14,
        "model.embed_tokens.weight": 22,
        "model.two.weight": 14,
    }
    assert total["total"] == {"tensors": 3, "parameters": 58, "added": 50}
    assert run(capsys, "inspect", base)[0] == 0
    code, _, err = run(capsys, "inspect", base, "--select", "query")
    assert (code, "matches none of 5 tensors" in err) == (1, True)
    assert run(capsys, "inspect", base, "--select", "(")[0] == 2
    assert run(capsys, "inspect", base, "--rank", 0)[0] == 2
    state = lrk.State({"x/kernel": {"d": jnp.ones((2, 3))}}, {})
    save_state(tmp_path / "s.npz", state)
    first, total = rows(capsys, "inspect", tmp_path / "s.npz")
    assert [first[k] for k in ("half", "path", "name")] == [
        "trainable",
        "x/kernel",
        "d",
    ]
    assert total == {"total": {"numbers": 6}}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("concat", {}),
        ("svd", {"rank": 2}),
        ("dare", {"density": 0.5, "seed": 3}),
    ],
)
def test_merge_is_that_of_the_library(pair, params, tmp_path, capsys, method, options):
    words = [x for n, v in options.items() for x in (f"--{n}", v)]
    rank = [] if "rank" in options or method == "concat" else ["--rank", 5]
    out = tmp_path / "out"
    weights = ["--weights", "0.5", "-1"]
    *found, _ = rows(
        capsys,
        "merge",
        *pair,
        "--out",
        out,
        "--method",
        method,
        *words,
        *rank,
        *weights,
    )
    trees = [load_peft(folder, params).adapted for folder in pair]
    told = {n: v for n, v in options.items() if n != "seed"}
    told |= {"key": jax.random.key(3)} if "seed" in options else {}
    merged = getattr(lrk.merging, method)(trees, [0.5, -1.0], **told)
    want = jax.jit(lrk.materialize)(merged)
    for name, got in delta(out, params).items():
        np.testing.assert_allclose(got, want[name]["kernel"], 1e-4, 1e-5)
    assert [row["ranks"] for row in found] == [[2, 1], [2, 1]]
    assert all(row["cut_off"] < 1e-6 for row in found if not (rank and row["rank"] < 5))


def test_a_merge_holds_one_module_at_a_time(tmp_path, capsys):
    rank, count = 32, 16
    own = Factors(number(rank, 512), number(512, rank), None, 1.0, False)
    for name in "ab":
        write_adapter(tmp_path / name, {f"layer.{i}": own for i in range(count)})
    words = ("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")
    assert run(capsys, *words)[0] == 0  # whatever is made once is there now
    tracemalloc.start()
    try:
        assert run(capsys, *words, "--overwrite")[0] == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    module = 4 * 2 * rank * (512 + 512)
    size = (tmp_path / "out/adapter_model.safetensors").stat().st_size
    assert size > count * module
    assert peak < 5 * module, f"{peak} bytes, {module} in a module"


@pytest.mark.parametrize("command", ["merge", "convert", "deploy"])
@pytest.mark.parametrize("moment", range(7))
def test_an_interruption_leaves_the_old_the_new_or_what_is_refused(
    pair, base, tmp_path, capsys, monkeypatch, command, moment
):
    old, new = tmp_path / "old", tmp_path / "new"
    # Of the same shapes, so that either's config would fit the other's weights.
    other = adapter(tmp_path / "c", by=1.1, scale=0.5, extra={"task_type": "CAUSAL_LM"})
    words = {
        "merge": (("merge", pair[0], pair[0]), ("merge", other, other)),
        "convert": (("convert", pair[0]), ("convert", other)),
        "deploy": (
            ("deploy", base, "--select", "one.w"),
            ("deploy", base, "--select", "two.w", "--device", "liu2017"),
        ),
    }[command]
    place = [] if command == "convert" else ["--out"]
    for first, folder in zip(words, (old, new), strict=True):
        assert run(capsys, *first, *place, folder)[0] == 0
    whole = [held(folder) for folder in (old, new)]
    assert whole[0] != whole[1]
    calls, replace = [], os.replace

    def interrupted(*names):
        calls.append(names)
        if len(calls) == moment + 1:
            raise KeyboardInterrupt
        replace(*names)

    monkeypatch.setattr("os.replace", interrupted)
    code = run(capsys, *words[1], *place, old, "--overwrite")[0]
    assert code == (130 if len(calls) == moment + 1 else 0)
    inspected = run(capsys, "inspect", old)[0]
    assert held(old) in whole if inspected == 0 else inspected == 1
    assert not [path for path in old.iterdir() if path.name.startswith(".")]


def held(folder):
    """The tensors and the config of a folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: path.read_bytes() for path in files}


def test_merges_that_cannot_be_are_told_before_anything_is_written(
    pair, tmp_path, capsys
):
    out = tmp_path / "out"
    merge = ("merge", *pair, "--out", out)
    for words, part in (
        (["--method", "fisher"], "no method 'fisher': one of breadcrumbs"),
        (["--method", "ties"], "ties needs --density"),
        (["--method", "dare", "--density", "0.5"], "dare needs --seed"),
        (["--density", "0.5"], "concat has no --density"),
        (["--weights", "1"], "1 weights for 2 adapters"),
        (["--method", "svd", "--rank", "0"], "--rank must be at least 1"),
    ):
        code, _, err = run(capsys, *merge, *words)
        assert (code, part in err) == (2, True), err
    dare = ("--method", "dare", "--density", "0.5", "--seed", "3")
    code, _, err = run(capsys, "merge", pair[1], pair[1], "--out", out, *dare)
    assert (code, "has full rank: pass --rank" in err) == (2, True)
    assert run(capsys, "merge", *pair, "--out", pair[0], "--overwrite")[0] == 2
    code, _, err = run(capsys, "merge", "--out", out)
    assert (code, "no adapters: name their folders" in err) == (2, True)
    assert not out.exists()
    head = {"head.weight": number(2, 3)}
    other = adapter(tmp_path / "whole", saved=head, whole=["head"])
    code, _, err = run(capsys, "merge", pair[0], other, "--out", out)
    assert (code, "stores 'head.weight' whole" in err) == (1, True)
    wide = Factors(number(2, 9), number(3, 2), None, 1.0, False)
    write_adapter(tmp_path / "wide", {"one": wide})
    code, _, err = run(capsys, "merge", pair[0], tmp_path / "wide", "--out", out)
    assert (code, "'one' is ('linear', 9, 3) in" in err) == (1, True)
    code, _, err = run(capsys, "merge", tmp_path / "no", "--out", out)
    assert (code, err.count("\n")) == (1, 1)
    assert "Traceback" not in err


def test_convert_goes_there_and_back(pair, params, tmp_path, capsys):
    want = delta(pair[0], params)
    for name in ("s.npz", "s.safetensors"):
        assert run(capsys, "convert", pair[0], tmp_path / name)[0] == 0
        back = tmp_path / f"back-{name[2:]}"
        state = load_state(tmp_path / name)
        assert sorted(state.trainable["one/kernel"]) == ["a", "b"]
        assert run(capsys, "convert", tmp_path / name, back)[0] == 0
        for key, got in delta(back, params).items():
            np.testing.assert_allclose(got, want[key], 1e-6)
    assert (
        run(capsys, "convert", tmp_path / "s.npz", tmp_path / "t.safetensors")[0] == 0
    )
    code, _, err = run(
        capsys, "convert", tmp_path / "s.npz", tmp_path / "t.safetensors"
    )
    assert (code, "pass --overwrite" in err) == (2, True)
    assert run(capsys, "convert", pair[0], tmp_path / "x.npz", "--rank", 1)[0] == 2
    assert run(capsys, "convert", pair[0], tmp_path / "x", "--lori")[0] == 2


def test_convert_knows_lori_dense_and_sparse(pair, base, params, tmp_path, capsys):
    file, back = tmp_path / "lori.npz", tmp_path / "back"
    assert run(capsys, "convert", pair[0], file, "--lori")[0] == 0
    tx = lrk.lori(2, scale=1.5)
    like = jax.eval_shape(tx.init, jax.random.key(0), params)
    state = load_state(file, like=like)
    want = delta(pair[0], params)
    for name, own in tx.apply(params, state).items():
        np.testing.assert_allclose(own["kernel"].delta(), want[name], 1e-5, 1e-6)
    masks = {
        f"{name}/kernel": np.eye(2, m, dtype=int) for name, (m, _) in SHAPES.items()
    }
    sparse = lrk.lori(2, mask=masks)
    kept = {path: {"b": jnp.ones(2)} for path in masks}
    fixed = {p: {**own, "index": jnp.array([0, 4])} for p, own in state.fixed.items()}
    made = lrk.State(kept, fixed)
    save_state(tmp_path / "s.npz", made)
    code, _, err = run(capsys, "convert", tmp_path / "s.npz", back)
    assert (code, "'one/kernel': packed under a mask: pass the --base" in err) == (
        1,
        True,
    )
    assert run(capsys, "convert", tmp_path / "s.npz", back, "--base", base)[0] == 0
    for name, own in sparse.apply(params, made).items():
        np.testing.assert_allclose(
            own["kernel"].delta(), delta(back, params)[name], 1e-6
        )
    odd = lrk.State({"x/kernel": {"d": jnp.ones((2, 3))}}, {})
    save_state(tmp_path / "d.npz", odd)
    code, _, err = run(capsys, "convert", tmp_path / "d.npz", back, "--overwrite")
    assert (code, "'x/kernel': holds d, not a, b and scale" in err) == (1, True)


def test_convert_comes_down_to_a_rank_and_keeps_the_rest(tmp_path, capsys):
    own = Factors(number(2, 4), number(3, 2, by=0.4), number(3), 1.5, False)
    saved = {"head.weight": number(2, 3), "head.bias": number(2), "one.bias": number(3)}
    extra = {"task_type": "SEQ_CLS"}
    write_adapter(
        tmp_path / "a",
        {"one": own},
        saved=saved,
        whole=["head"],
        bias="all",
        extra=extra,
    )
    first, _ = rows(capsys, "convert", tmp_path / "a", tmp_path / "b", "--rank", 1)
    assert (first["was"], first["rank"]) == (2, 1)
    was, new = (
        {k.removeprefix("base_model.model."): v for k, v in load_file(f).items()}
        for f in (tmp_path / n / "adapter_model.safetensors" for n in "ab")
    )
    assert was.keys() == new.keys()
    for key in was:
        if "lora_A" not in key and "lora_B" not in key:
            np.testing.assert_array_equal(was[key], new[key])
    whole = 1.5 * was["one.lora_B.weight"] @ was["one.lora_A.weight"]
    lost = whole - new["one.lora_B.weight"] @ new["one.lora_A.weight"]
    assert np.sum(lost**2) / np.sum(whole**2) == pytest.approx(first["cut_off"], 1e-3)
    config = json.loads((tmp_path / "b/adapter_config.json").read_text())
    assert [config[k] for k in ("task_type", "r", "lora_alpha", "modules_to_save")] == [
        "SEQ_CLS",
        1,
        1,
        ["head"],
    ]
    code, _, err = run(capsys, "convert", tmp_path / "a", tmp_path / "x.npz")
    assert (code, "more than low-rank terms" in err) == (1, True)


@pytest.mark.parametrize("digital", [False, True])
def test_deploy_is_the_crossbar_of_the_library(
    pair, params, base, tmp_path, capsys, digital
):
    out = tmp_path / "out"
    words = ["--adapter", pair[0], "--device", "chen2015_a", "--seed", 3, "--out", out]
    *found, total = rows(capsys, "deploy", base, *words, *["--digital"] * digital)
    assert [row["tensor"] for row in found] == ["model.one.weight", "model.two.weight"]
    assert all(row["changed"] and 0 < row["error"] < 9 for row in found)
    stored, got = (
        {k: v for f in ("a", "b") for k, v in load(folder / f"{f}.safetensors").items()}
        for folder in (base, out)
    )
    for key in ("model.embed_tokens.weight", "model.two.bias", "steps"):
        np.testing.assert_array_equal(got[key], stored[key])
    changes = delta(pair[0], params)
    chip = lrk.rram.crossbar(lrk.rram.chen2015_a())
    for name, change in changes.items():
        w = np.asarray(stored[f"model.{name}.weight"], np.float32).T
        path = f"model/{name}/kernel"
        leaf = {path: jnp.asarray(w if digital else w + change)}
        held = chip.apply(leaf, chip.init(jax.random.key(3), leaf))[path]
        want = np.asarray(held) + (change if digital else 0)
        tolerance = 1e-5 if name == "one" else 2e-2  # the second is bfloat16
        np.testing.assert_allclose(
            np.asarray(got[f"model.{name}.weight"], np.float32).T, want, tolerance, 2e-2
        )
    assert (out / "config.json").read_text() == "{}"
    assert (out / _files.INDEX).read_bytes() == (base / _files.INDEX).read_bytes()
    assert total["total"]["on_chip"] == 2


def load(file):
    entries = {entry.key: entry for entry in _files.list_file("test", file)}
    return _files.read_tensors(entries)


def test_deploy_refuses_what_does_not_fit(base, tmp_path, capsys):
    out = ("--out", tmp_path / "out")
    for words, code, part in (
        (["--device", "x"], 2, "no device 'x': one of chen2015_a"),
        (["--select", "bias"], 1, "no floating matrix: 'model.two.bias' F32[3]"),
        (["--select", "query"], 1, "no tensor is selected"),
    ):
        got, _, err = run(capsys, "deploy", base, *out, *words)
        assert (got, part in err) == (code, True), err
    other = Factors(number(2, 9), number(3, 2), None, 1.0, False)
    write_adapter(tmp_path / "other", {"three": other})
    got, _, err = run(capsys, "deploy", base, *out, "--adapter", tmp_path / "other")
    assert (got, "unexpected 'three.weight'" in err) == (1, True)
    own = Factors(number(2, 4), number(3, 2), None, 1.0, False)
    whole = {"two.weight": number(2, 2)}
    write_adapter(tmp_path / "odd", {"one": own}, saved=whole, whole=["two"])
    got, _, err = run(capsys, "deploy", base, *out, "--adapter", tmp_path / "odd")
    assert (got, "'two.weight' of the adapter: expected (3, 4), got (2, 2)" in err) == (
        1,
        True,
    )
    assert not list((tmp_path / "out").glob("b.*"))
    assert run(capsys, "deploy", base, "--out", base)[0] == 2


def test_deploy_knows_lengths_and_clears_what_it_replaces(base, tmp_path, capsys):
    own = Factors(number(2, 4), number(3, 2, by=0.4), number(3), 1.5, False)
    write_adapter(tmp_path / "dora", {"one": own})
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_text("of another checkpoint")
    words = ("--out", out, "--adapter", tmp_path / "dora", "--select", "one.w")
    assert run(capsys, "deploy", base, *words)[0] == 2
    assert run(capsys, "deploy", base, *words, "--overwrite")[0] == 0
    assert not (out / "model.safetensors").exists()
    w = number(3, 4, by=0.3) + 1.5 * own.b @ own.a
    want = own.m[:, None] * w / np.linalg.norm(w, axis=1, keepdims=True)
    got = load_file(out / "a.safetensors")["model.one.weight"]
    np.testing.assert_allclose(got, want, 1e-4, 1e-5)


def test_deploy_without_a_defect_changes_nothing(base, tmp_path, capsys):
    *found, _ = rows(
        capsys, "deploy", base, "--out", tmp_path / "o", "--select", "one.w"
    )
    assert found[0]["error"] < 1e-6
    got = load_file(tmp_path / "o/a.safetensors")
    np.testing.assert_allclose(
        got["model.one.weight"], number(3, 4, by=0.3), 1e-5, 1e-6
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples(command, capsys):
    code, out, _ = run(capsys, command, "--help")
    text = "\n".join(out)
    assert code == 0
    assert f"lowrank {command} " in text
    assert "Examples:" in text


def test_usage_is_told_with_its_code(capsys):
    assert run(capsys)[0] == 2
    code, out, _ = run(capsys, "--help")
    assert (code, out[0]) == (
        0,
        "The command line: look into adapters and checkpoints, merge, convert, deploy.",
    )
    code, _, err = run(capsys, "frobnicate")
    assert (code, err) == (
        2,
        "lowrank: no command 'frobnicate': one of inspect, merge, convert, deploy\n",
    )
    assert run(capsys, "inspect")[0] == 2
    assert run(capsys, "inspect", "x", "--no-such-option")[0] == 2


def test_what_is_not_there_is_told(tmp_path, capsys):
    code, _, err = run(capsys, "inspect", tmp_path / "typo")
    assert (code, "no such file or folder: '" in err) == (1, True)


def test_a_missing_extra_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tyro", None)
    code, _, err = run(capsys, "inspect", "x")
    assert (code, "pip install lowrank[cli]" in err) == (2, True)


def test_an_interruption_has_its_code(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lowrank.cli._run", interrupted)
    code, _, err = run(capsys, "inspect", "x")
    assert (code, "nothing half-written" in err) == (130, True)


def test_help_loads_nothing_that_it_does_not_need():
    code = (
        "import sys; from lowrank.cli import main; main(['--help']);"
        "print(*sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    loaded = set(done.stderr.split())
    assert not loaded & {"tyro", "safetensors", "flax", "rich", "optax", "torch"}
