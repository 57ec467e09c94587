"""The cost model against trees of shapes, and the reading of compiled programs."""

import jax
import pytest

import lowrank as lrk
from benchmarks.record import Records
from benchmarks.report import Table
from benchmarks.tables import _scaling_pieces, scaling
from benchmarks.tables._scaling_cost import LLAMA, STATE, Sizes, cost
from benchmarks.tables._scaling_measure import _shapes, collectives

SMALL = Sizes(layers=2, width=64, kv=32, hidden=128, vocab=96)


def test_the_bases_have_as_many_parameters_as_were_published():
    assert LLAMA["8B"].base == 8_030_261_248
    assert LLAMA["70B"].base == 70_553_706_496


def test_numbers_of_base_and_adapter_are_those_of_the_tree():
    params = _shapes(SMALL)
    assert sum(x.size for x in jax.tree.leaves(params)) == SMALL.base
    tx = lrk.lora(8, select=lrk.matching(r"^layers.*kernel$"))
    state = jax.eval_shape(tx.init, jax.random.key(0), params)
    assert lrk.count(state) == (SMALL.adapter(8), 0)


def test_one_device_holds_all_and_receives_nothing():
    alone = cost(SMALL, rank=8, tokens=10)
    assert alone.base == 2 * SMALL.base
    assert alone.adapters == STATE * SMALL.adapter(8)
    assert alone.kept == 2 * 10 * 64 * 2 + 10 * 96 * 6
    assert (alone.gathered, alone.reduced) == (0, 0)
    assert alone.total == alone.base + alone.adapters + alone.kept + alone.working


def test_what_is_split_and_what_is_received():
    alone, split = cost(SMALL), cost(SMALL, data=4, model=2, adapters=16)
    assert split.base == alone.base / 8
    assert split.adapters == 2 * alone.adapters
    kernels, tables = 2 * 2 * SMALL.layer, 3 * SMALL.table
    assert split.gathered == 3 / 4 * (kernels + tables) * 2 / 2
    assert split.reduced == 2 * 1 / 2 * 6 * 2 * 16_384 * 64 * 2  # two layers, six sums
    whole = cost(SMALL, data=4)
    assert whole.reduced == 2 * 3 / 4 * 4 * SMALL.adapter(8)


def test_collectives_are_counted_with_all_their_outputs():
    text = """
  %all-gather.1 = f32[16,24]{1,0} all-gather(%param.4), channel_id=2, dimensions={0}
  ROOT %all-reduce.4 = (f32[2,16]{1,0}, /*index=5*/f32[4]{0}) all-reduce(%a, %b), x={}
  %gte = f32[2,16]{1,0} get-tuple-element(%all-reduce.4), index=0
  %all-to-all.3 = (bf16[8,3]{1,0}, bf16[8,3]{1,0}) all-to-all(%c, %d), channel_id=3
"""
    found = {"all-gather": 4 * 16 * 24, "all-reduce": 4 * 36, "other": 2 * 48}
    assert collectives(text) == found


def test_the_report_shows_formulas_without_records_and_measures_not_run():
    blocks = scaling.report(Records())
    *_, memory, _, traffic, _, _, programs, _, pieces, extended = blocks
    assert all(isinstance(block, Table) for block in (memory, traffic, programs))
    assert [row[:3] for row in memory.rows][6] == ["70B", 8, 1]
    assert memory.rows[6][3] == pytest.approx(70.553706496 * 2 / 8)
    assert {tuple(row[1:]) for row in programs.rows} == {(None,) * 5}
    assert {row[1] for row in pieces.rows} == {None}
    assert [row[2] for row in extended.rows][1] == pytest.approx(251.658)
    assert {tuple(row[3:]) for row in extended.rows} == {(None,) * 5}


def test_pieces_are_measured_and_add_up():
    sizes = Sizes(layers=1, width=32, kv=32, hidden=64, vocab=16)
    found = _scaling_pieces.measure(list(sizes), 2, 1, 4, adapters=2, repeats=1)
    assert found["adapter_bytes"] == 4 * sizes.adapter(2)
    for name in ("step_s", "save_s", "restore_s", "swap_s", "fingerprint_s_byte"):
        assert found[name] > 0
    one, two = (found | {"save_s": 3.0, "save_s_byte": s} for s in (0.0, 1e-9))
    _, save, *_, step = scaling._seconds(one, sizes, 1000)
    assert save == 3
    kept, longer, *_ = scaling._seconds(two, sizes, 1000)
    assert longer == pytest.approx(3 + kept)
    flops = 1000 * 16_384 * (6 * sizes.layer + 4 * sizes.table)
    assert step * 3600 * found["flops_s"] == pytest.approx(flops)
