"""The timing of a training step: agreement, products of a program, its report."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import record as records
from benchmarks import runner
from benchmarks.blocks import Table
from benchmarks.speed import _contenders as contenders
from benchmarks.speed import _hlo as hlo
from benchmarks.speed import _lora_report as lora_report
from benchmarks.speed import _measure as measure
from benchmarks.speed import _networks as networks
from benchmarks.speed import _peers as peers
from benchmarks.speed import lora_step
from benchmarks.speed._goals import Goal
from benchmarks.timing import Comparison

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def layer():
    return networks.layer_network(6, batch=2, length=5, rank=2)


# Products in a compiled program.


def test_products_are_read_from_a_compiled_program():
    def run(x, w, many):
        return jnp.tanh(x @ w), many @ jnp.swapaxes(many, 1, 2)

    args = jnp.ones((3, 5)), jnp.ones((5, 7)), jnp.ones((2, 4, 6))
    found = hlo.products(jax.jit(run).lower(*args).compile().as_text())
    assert {(p.out, p.batched) for p in found} == {((3, 7), False), ((2, 4, 4), True)}
    (plain,) = hlo.with_size(found, 7, 5)
    assert str(plain) == "[3, 5] @ [5, 7] -> [3, 7]"
    assert hlo.forming(found, 7, 3) == {plain: 1}
    assert not hlo.forming(found, 5, 7)


def test_operands_are_looked_up_in_their_own_computation():
    text = """
%one (p: f32[2,3], q: f32[3,4]) -> f32[2,4] {
  %p = f32[2,3]{1,0} parameter(0)
  %q = f32[3,4]{1,0} parameter(1)
  ROOT %d = f32[2,4]{1,0} dot(%p, %q), lhs_contracting_dims={1}
}

ENTRY %main (p: f32[5,6]) -> f32[5,5] {
  %p = f32[5,6]{1,0} parameter(0)
  ROOT %d = f32[5,5]{1,0} dot(f32[5,6]{1,0} %p, f32[5,6]{1,0} %p), x={1}
}
"""
    assert hlo.products(text) == {
        hlo.Product((2, 3), (3, 4), (2, 4), batched=False): 1,
        hlo.Product((5, 6), (5, 6), (5, 5), batched=False): 1,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ENTRY %m (p: f32[2]) -> f32[2] {\n}", "holds no dot"),
        ('%c = f32[2] custom-call(%p), custom_call_target="__cublas$gemm"', "gemm"),
        ("%d = f32[2,2]{1,0} dot(%gone, %gone), x={1}", "unknown operand '%gone'"),
    ],
)
def test_a_program_whose_products_cannot_be_read_is_refused(text, message):
    with pytest.raises(ValueError, match=f"products: .*{message}".replace("$", r"\$")):
        hlo.products(text)


# Agreement.


def test_every_contender_agrees_on_loss_and_gradients(layer):
    found = measure.checked(layer, list(lora_report.NAMES))
    here = {*contenders.own(layer), *peers.PEERS} - set(found.absent)
    assert set(found.programs) == here
    refused = [r for r in found.absent.values() if not r.startswith("not installed")]
    assert refused == []
    trained = here - {"forward", "input"}
    assert all(found.agreement[n].keys() >= {"loss", "factors"} for n in trained)
    assert all(max(own.values()) < 1e-5 for own in found.agreement.values())
    before = found.contenders["lowrank"].trainable
    update = measure._calls(found, ["lowrank", "forward"])
    assert {name for name in update if "+" in name} == {"lowrank+adam"}
    losses = [float(update["lowrank+adam"]()[1]) for _ in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]
    assert not jax.tree.leaves(before)[0].is_deleted()


def wrong(network):
    """The adapters without their scale."""
    unscaled = dataclasses.replace(network, rank=int(contenders.ALPHA))
    return contenders.by_hand(unscaled, contenders.naive)


def refusing(_):
    raise TypeError("no such shape\nand more")


def missing(_):
    raise ImportError("no module", name="quax")


def test_a_peer_that_is_missing_refuses_or_is_wrong_is_named(layer, monkeypatch):
    made = {"nnx": wrong, "qwix": refusing, "quax": missing}
    monkeypatch.setattr(peers, "PEERS", made)
    found = measure.checked(layer, ["nnx", "qwix", "quax"])
    assert set(found.programs) == {"flat"}
    assert found.absent["nnx"].startswith("its result differs by")
    assert found.absent["qwix"] == "fails: TypeError: no such shape"
    assert found.absent["quax"] == "not installed (quax)"


def test_a_contender_of_this_project_that_is_wrong_stops_the_run(layer, monkeypatch):
    honest = contenders.own(layer)
    monkeypatch.setattr(
        measure, "own", lambda network: honest | {"lowrank": wrong(network)}
    )
    with pytest.raises(RuntimeError, match="speed/lora_step: lowrank: its result"):
        measure.checked(layer, ["lowrank"])


def test_the_scanned_contenders_have_one_loss():
    sizes = networks.Sizes(1, 4, 6, 2, 2, 3, 5, 2)
    found = measure.under_scan(dataclasses.asdict(sizes), ["lowrank", "materialised"])
    assert set(found["costs"]) == {"lowrank", "flat", "materialised"}
    assert found["agreement"] < 1e-6


# Records and report.

COSTS = {
    "trace_s": 0.5, "compile_s": 2.0, "gflop": 1.0, "temp_mb": 80.0, "output_mb": 1.0,
}  # fmt: skip


def part(scale=1.0, absent=None):
    """What one process measured, made up: lowrank 10 ms, flat 10, full 20."""
    wall = {name: np.full((1, 4), ms) for name, ms in TIMES.items()}
    wall["lowrank"] = wall["lowrank"] * scale
    names = [name for name in TIMES if "+" not in name]
    return {
        "times": Comparison("flat", wall, wall).as_dict(),
        "costs": {name: dict(COSTS) for name in names},
        "agreement": {name: {"loss": 0.0, "factors": 2e-7} for name in names},
        "absent": absent or {},
        "peers": {"flax": "1.2", "qwix": "not installed", "quax": "not installed"},
    }


TIMES = {"lowrank": 10.0, "flat": 10.0, "full": 20.0, "nnx": 15.0, "lowrank+adam": 11.0}
SCAN = {
    name: {**COSTS, "temp_mb": mb}
    for name, mb in {"lowrank": 80.0, "flat": 80.0, "materialised": 160.0}.items()
}
MANY = {"base_products": 2, "all_tokens": 2, "copies": 0, "example": "[8, 2] @ ..."}


@pytest.fixture
def measured(monkeypatch):
    """Stands in for the fresh processes; a list of what was asked of them."""
    asked = []

    def answer(module, args, processes):
        asked.append((module.partition(":")[2], args, processes))
        if module.endswith(":under_scan"):
            return [{"costs": SCAN, "agreement": 0.0}]
        if module.endswith(":many_adapters"):
            return [{name: MANY for name in args["networks"]}]
        absent = {"quax": "not installed (quax)"}
        scales = [1.0, 1.1, 1.2][:processes]
        return [[part(s, absent) for _ in args["networks"]] for s in scales]

    monkeypatch.setattr(lora_step, "in_processes", answer)
    return asked


def run(folder, **options):
    session = runner.Session("speed/lora_step", folder)
    lora_step.run(lora_step.Config(**options), session)
    return records.read_folder(session.folder)[0], session


def test_rows_are_written_once_and_resumed(measured, tmp_path):
    found, session = run(tmp_path)
    layers = [f"layer-{n}" for n in (1024, 2048, 512)]
    rows = [*layers, "many-adapters", "scan-remat", "transformer"]
    assert [record.row for record in found] == rows
    assert [name for name, _, _ in measured] == [
        "measure", "measure", "under_scan", "many_adapters",
    ]  # fmt: skip
    assert measured[0][1]["rounds"] * measured[0][2] >= 30
    assert len(set(session.written)) == runner.find("speed/lora_step").rows
    metrics = found.get("transformer").metrics["contenders"]
    assert metrics["lowrank"]["ratio_flat"][0] == pytest.approx(1.1)
    assert metrics["flat"]["ratio_lowrank"][0] == pytest.approx(1 / 1.1)
    assert metrics["lowrank+adam"]["median_ms"] == 11.0
    assert len(found.get("transformer").series["lowrank"]) == 12
    run(tmp_path)
    assert len(measured) == 4
    run(tmp_path, layers=(512, 640))
    assert [len(args["networks"]) for _, args, _ in measured[4:]] == [1]


@pytest.mark.usefixtures("measured")
def test_goals_are_judged_from_the_records(tmp_path):
    found, _ = run(tmp_path)
    goals = {goal.text: goal for goal in lora_report.goals(found)}
    verdicts = {text: goal.verdict() for text, goal in goals.items()}
    start = "step over the flattened layer by hand, "
    spans = "not met, but the interval spans the limit"
    assert verdicts[start + "transformer"] == spans
    assert verdicts["step over full fine-tuning, transformer"] == "met"
    memory = "temporary memory under scan and remat over the "
    assert goals[memory + "materialised form"].value == 0.5
    assert goals[memory + "materialised form"].verdict() == "met"
    tracing = goals["seconds of tracing more than the unlifted model, transformer"]
    assert (tracing.value, tracing.verdict()) == (0.0, "met")
    assert len(goals) == 2 * 4 + 2 + 2 + 1
    assert Goal("x", 1.0, (1.2, 1.1, 1.3), None).verdict() == "not met"
    assert Goal("x", 1.0, 1.2, None).verdict() == "not met"


@pytest.mark.usefixtures("measured")
def test_the_report_says_what_the_numbers_say(tmp_path):
    found, _ = run(tmp_path)
    tables = [b for b in lora_step.report(found) if isinstance(b, Table)]
    times = next(t for t in tables if t.caption.startswith("Time of one step: trans"))
    assert "of 6 blocks, width 384, 1,024 tokens, rank 8" in times.caption
    cells = {row[0]: row for row in times.text()}
    assert cells["nnx.LoRALinear 1.2"][2].startswith("1.364 [")
    assert "quax LoraArray: not installed (quax)" in cells
    assert cells["quax LoraArray: not installed (quax)"][1].strip() == "–"
    assert times.notes[0] == (
        "lowrank takes 1.10 [1.00, 1.20] of the time of the flattened layer by hand "
        "and 0.55 [0.50, 0.60] of the time of full fine-tuning."
    )
    assert times.notes[1].endswith("in lowrank's: nnx.LoRALinear 1.36.")
    many = tables[-1]
    assert [row[1] for row in many.text()] == ["yes", "yes"]


@pytest.mark.usefixtures("measured")
def test_a_batched_base_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(MANY, "copies", 1)
    found, _ = run(tmp_path)
    assert [row[1] for row in lora_step.report(found)[-1].text()] == ["no", "no"]


@pytest.mark.usefixtures("measured")
def test_a_run_of_some_contenders_is_reported(tmp_path, monkeypatch):
    monkeypatch.delitem(SCAN, "materialised")
    found, _ = run(tmp_path, contenders=("lowrank", "nnx"))
    verdicts = {goal.text: goal.verdict() for goal in lora_report.goals(found)}
    start = "temporary memory under scan and remat over the "
    assert verdicts[start + "flattened layer by hand"] == "met"
    assert verdicts[start + "materialised form"] is None
    assert len(lora_step.report(found)) > 10


def test_a_backend_that_tells_no_costs_is_refused(monkeypatch):
    class Silent:
        def lower(self, *_):
            return self

        def compile(self):
            return self

        def cost_analysis(self):
            return None

        memory_analysis = cost_analysis

    monkeypatch.setattr(jax, "jit", lambda *_, **__: Silent())
    with pytest.raises(RuntimeError, match="does not say what a program costs"):
        measure.build(abs, (1.0,))


def test_without_records_everything_is_not_run():
    tables = [
        block
        for block in lora_step.report(records.Records())
        if isinstance(block, Table)
    ]
    assert len(tables) == 1 + 2 * 4 + 2
    cells = [cell.strip() for table in tables for row in table.text() for cell in row]
    assert cells.count("not run") > 200
    assert "–" not in cells


def test_the_smoke_config_is_tiny_and_the_page_has_its_markers():
    smoke = lora_step.Config().smoke()
    assert (smoke.rounds, smoke.processes, smoke.blocks) == (2, 1, 1)
    assert max(*smoke.layers, smoke.width, smoke.hidden) <= 64
    page = (DOCS / "speed.md").read_text(encoding="utf-8")
    assert "<!-- records:speed/lora_step -->\n" in page
    assert page.rstrip().endswith("<!-- end -->")
