"""The step beside peers on public shapes: agreement, memory, records, report."""

import pathlib

import jax
import numpy as np
import pytest

from benchmarks import record as records
from benchmarks import runner
from benchmarks.blocks import Table
from benchmarks.speed import _peers_jax as ours
from benchmarks.speed import _peers_measure as measure
from benchmarks.speed import _peers_nets as nets
from benchmarks.speed import _peers_report as peers_report
from benchmarks.speed import _peers_torch as pytorch
from benchmarks.speed import peers
from benchmarks.speed._goals import Goal
from benchmarks.timing import Comparison

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"


def tiny(name, dtype="float32"):
    return nets.problem(name, rank=2, alpha=4.0, dtype=dtype, shrink=32, seed=0)


@pytest.fixture(scope="module")
def bert():
    return tiny("minilm")


# Problems.


def test_the_networks_have_the_shapes_of_the_public_models():
    sizes = {name: net.config for name, net in nets.NETS.items()}
    minilm, smollm = sizes["minilm"], sizes["smollm2"]
    assert (minilm["num_hidden_layers"], minilm["hidden_size"]) == (6, 384)
    assert smollm["hidden_size"] // smollm["num_attention_heads"] == 64
    model = jax.eval_shape(
        lambda: nets.Llama(nets.LlamaConfig(**smollm), rngs=nets.nnx.Rngs(0))
    )
    count = sum(x.size for x in jax.tree.leaves(model))
    assert count == 134_515_008
    assert len(nets.paths(model, nets.NETS["smollm2"].pattern)) == 30 * 7


def test_every_dense_layer_of_a_block_is_adapted(bert):
    assert len(bert.factors) == 6
    assert not any("pooler" in path for path in bert.factors)
    assert all(np.abs(own["b"]).min() > 0 for own in bert.factors.values())
    whole = nets.NETS["minilm"]
    assert whole.shrunk(1) is whole
    assert (bert.net.batch, bert.net.length, bert.tokens) == (2, 4, 8)


# Agreement.


def test_every_contender_agrees_on_loss_and_gradients(bert):
    out = measure.checked(bert, list(peers_report.NAMES), "cpu")
    assert set(out.calls) == set(peers_report.NAMES) - set(out.absent)
    assert all(why.startswith("not installed") for why in out.absent.values())
    for name, about in out.found.items():
        assert about["gradient_difference"] < 1e-5, name
        assert about["loss_difference"] < 1e-6, name
    assert out.found["flat"]["gradient_difference"] == 0
    norms = [about["gradient_norm"] for about in out.found.values()]
    assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-5)
    flops = {n: call.costs().get("gflop") for n, call in out.calls.items()}
    assert flops["lowrank"] == pytest.approx(flops["flat"], rel=0.01)
    assert flops["lowrank"] < flops["full"]


def test_the_distance_is_that_of_the_worst_factor():
    want = {"w": {"a": np.ones(4), "b": np.ones(1)}, "v": {"a": np.ones(9)}}
    got = {"w": {"a": np.ones(4), "b": np.full(1, 1.5)}, "v": {"a": np.ones(9)}}
    assert measure.distance(got, want) == 0.5
    got["w"]["a"] = np.full(4, np.nan)
    assert np.isnan(measure.distance(got, want))
    del got["w"]
    with pytest.raises(ValueError, match="speed/peers: gradients of {'w'} are missing"):
        measure.distance(got, want)


def test_peft_trains_the_same_decoder():
    pytest.importorskip("peft")
    given = tiny("smollm2", "bfloat16")
    out = measure.checked(given, ["peft"], "cpu")
    assert out.absent == {}
    assert 0 < out.found["peft"]["gradient_difference"] < 0.05
    with pytest.raises(RuntimeError, match="JAX runs on gpu, and PyTorch has no GPU"):
        pytorch.Peft(given, "gpu")


class Call:
    """Stands in for a contender: losses, and a gradient."""

    def __init__(self, gradient=1.0, losses=(2.0, 1.0)):
        self.losses, self.value = iter(losses), gradient

    def __call__(self):
        return next(self.losses)

    def gradient(self):
        return {"w": {"a": np.full(3, self.value)}}


def made(monkeypatch, **calls):
    def make(_given, name, _where):
        call = calls.get(name, Call())
        if isinstance(call, Exception):
            raise call
        return call

    monkeypatch.setattr(measure, "_made", make)


def test_a_peer_that_is_missing_fails_or_is_wrong_is_named(bert, monkeypatch):
    wrong = {"nnx": Call(1.1), "qwix": TypeError("no such shape\nand more")}
    made(monkeypatch, peft=ImportError("no module", name="peft"), **wrong)
    out = measure.checked(bert, ["lowrank", "nnx", "qwix", "peft"], "cpu")
    assert set(out.calls) == {"lowrank"}
    assert out.absent["nnx"] == "its result differs by 1.0e-01, relative"
    assert out.absent["qwix"] == "fails: TypeError: no such shape"
    assert out.absent["peft"] == "not installed (peft)"
    made(monkeypatch, nnx=Call(losses=(2.0, 2.0)))
    out = measure.checked(bert, ["lowrank", "nnx"], "cpu")
    assert out.absent["nnx"] == "its loss does not fall"


def test_a_contender_of_this_project_that_is_wrong_stops_the_run(bert, monkeypatch):
    made(monkeypatch, lowrank=Call(np.nan))
    with pytest.raises(RuntimeError, match="speed/peers: lowrank: its result differs"):
        measure.checked(bert, ["lowrank"], "cpu")
    made(monkeypatch, lowrank=TypeError("broken"))
    with pytest.raises(TypeError, match="broken"):
        measure.checked(bert, ["lowrank"], "cpu")


def test_the_growth_of_a_process_is_measured(monkeypatch):
    class Hungry:
        def __call__(self):
            np.ones(25_000_000).sum()  # 200 MB, given back

    monkeypatch.setattr(measure, "_start", lambda *_: "cpu")
    monkeypatch.setattr(measure, "problem", lambda **_: None)
    monkeypatch.setattr(measure, "_made", lambda *_: Hungry())
    grown = measure.resident({"dtype": "float32"}, "peft", 1, 0)
    if grown is None:
        pytest.skip("the system does not tell")
    assert 190 < grown < 260

    def missing(*_):
        raise ImportError

    monkeypatch.setattr(measure, "_made", missing)
    assert measure.resident({"dtype": "float32"}, "peft", 1, 0) is None


# Records and report.

TIMES = {"lowrank": 10.0, "flat": 10.0, "nnx": 12.5, "qwix": 8.0, "full": 13.0}


def part(scale):
    """What one process measured, made up."""
    wall = {name: np.full((1, 4), ms) for name, ms in TIMES.items()}
    wall["flat"] = wall["flat"] * scale
    about = {
        "loss": 2.0,
        "gradient_norm": 3.0,
        "loss_difference": 0.0,
        "gradient_difference": 2e-7 * scale,
        "gflop": 1.0,
        "temp_mb": 80.0,
        "argument_mb": 90.0,
        "trace_s": 0.5,
        "compile_s": 2.0,
    }
    return {
        "times": Comparison("lowrank", wall, wall).as_dict(),
        "about": {name: about for name in TIMES},
        "absent": {"peft": "not installed (peft)"},
        "peers": {"flax": "1.2", "qwix": "3.4", "peft": "not installed"},
        "tokens": 1024,
        "cores": 1,
        "backend": "cpu",
    }


@pytest.fixture
def asked(monkeypatch):
    """Stands in for the fresh processes; a list of what was asked of them."""
    found = []

    def answer(module, args, processes):
        kind = module.partition(":")[2]
        found.append((kind, args, processes))
        if kind == "backend":
            return ["cpu"]
        if kind == "resident":
            return [123.0]
        return [part(scale) for scale in (0.9, 1.1)][:processes]

    monkeypatch.setattr(peers, "in_processes", answer)
    return found


def run(folder, **options):
    session = runner.Session("speed/peers", folder)
    peers.run(peers.Config(**options), session)
    return records.read_folder(session.folder)[0], session


def test_rows_are_written_once_and_resumed(asked, tmp_path):
    found, session = run(tmp_path)
    assert len(session.written) == runner.find("speed/peers").rows
    assert [r.row for r in found] == ["minilm-cpu-float32", "smollm2-cpu-float32"]
    row = ["measure", "resident", "resident"]
    assert [kind for kind, *_ in asked] == ["backend", *row, *row]
    metrics = found.get("minilm-cpu-float32").metrics["contenders"]
    assert metrics["nnx"]["tokens_s"] == pytest.approx(1024 / 12.5e-3)
    assert metrics["nnx"]["own"][0] == pytest.approx(0.8)
    assert metrics["lowrank"]["resident_mb"] == 123.0
    assert metrics["flat"]["difference"] == pytest.approx(2.2e-7)
    run(tmp_path)
    assert len(asked) == 8
    run(tmp_path, nets=("llama8b",), contenders=("full",))
    assert asked[9][1]["names"] == ["lowrank", "full"]


def test_a_gpu_is_fed_by_all_cores_and_runs_every_network(monkeypatch, tmp_path):
    found = []

    def answer(module, args, processes):
        found.append((module.partition(":")[2], args))
        gpu = [part(1.0) | {"backend": "gpu"}] * processes
        return ["gpu"] if module.endswith("backend") else gpu

    monkeypatch.setattr(peers, "in_processes", answer)
    monkeypatch.setattr(peers, "_cores", lambda: 16)
    rows, _ = run(tmp_path, dtype="bfloat16")
    assert [kind for kind, _ in found] == ["backend", *["measure"] * 3]
    assert {args["threads"] for _, args in found[1:]} == {16}
    assert rows.get("llama8b-gpu-bfloat16").config["resident"] == []
    goals = {goal.text: goal.verdict() for goal in peers_report.goals(rows)}
    full = "step over full fine-tuning, two layers of Llama-3-8B, GPU, bfloat16"
    assert goals[full] == "not met"


@pytest.mark.usefixtures("asked")
def test_goals_are_judged_from_the_records(tmp_path):
    found, _ = run(tmp_path, nets=("minilm", "llama8b"))
    goals = {goal.text: goal.verdict() for goal in peers_report.goals(found)}
    here = "MiniLM-L6, CPU, float32"
    assert goals[f"step over by hand, 2-D x, {here}"] == "met within its interval"
    assert goals[f"step over nnx.LoRA, {here}"] == "met"
    assert goals[f"step over qwix LoraProvider, {here}"] == "not met"
    assert goals[f"step over PEFT, {here}"] is None
    full = "step over full fine-tuning, two layers of Llama-3-8B,"
    assert goals[f"{full} CPU, float32"] == "not met"
    assert goals[f"{full} GPU, bfloat16"] is None
    both = (1.0, 0.9, 1.1)
    assert Goal("x", 1.0, both, None, within=True).verdict() == "met"
    spans = "met, but the interval spans the limit"
    assert Goal("x", 1.0, both, None).verdict() == spans


@pytest.mark.usefixtures("asked")
def test_the_report_says_what_the_numbers_say(tmp_path):
    found, _ = run(tmp_path)
    tables = [block for block in peers.report(found) if isinstance(block, Table)]
    assert tables[1].caption.endswith("CPU, float32, 1,024 tokens, rank 8.")
    cells = {row[0]: [x.strip() for x in row[1:]] for row in tables[1].text()}
    assert cells["nnx.LoRA 1.2"][:3] == ["0.013", "81920", "1.250 [1.250, 1.250]"]
    assert cells["PEFT: not installed (peft)"] == ["–"] * 4
    assert "1 thread(s) on 1 core(s); 8 rounds in each of 2" in tables[1].notes[0]
    cells = {row[0]: [x.strip() for x in row[1:]] for row in tables[2].text()}
    assert cells["lowrank"] == [
        "1.00",
        "80.0",
        "90.0",
        "0.50",
        "2.00",
        "123.0",
        "2e-07",
    ]
    assert cells["by hand, rank-3 x"][-1] == "–"


def test_without_records_everything_is_not_run():
    found = peers.report(records.Records())
    tables = [block for block in found if isinstance(block, Table)]
    assert len(tables) == 1 + 2 * 2
    cells = [cell.strip() for table in tables for row in table.text() for cell in row]
    assert cells.count("not run") > 200
    assert "–" not in cells


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"unknown nets \['bert'\]. Known: minilm, "):
        peers.Config(nets=("bert",))
    with pytest.raises(ValueError, match=r"unknown dtype \['float16'\]"):
        peers.Config(dtype="float16")
    assert peers_report.by_default("gpu") == ("minilm", "smollm2", "llama8b")
    assert set(peers_report.NAMES) == {*ours.MAKERS, "peft"}


def test_the_smoke_config_is_tiny_and_the_page_has_its_markers():
    smoke = peers.Config().smoke()
    assert (smoke.rounds, smoke.processes, smoke.shrink) == (2, 1, 16)
    page = (DOCS / "speed.md").read_text(encoding="utf-8")
    assert "<!-- records:speed/peers -->\n" in page
