"""Exchanges are read from a program's text: spellings of groups, loops, asynchronous forms."""

import pytest

from b2b_jax.report.bounds import step_bound
from b2b_jax.report.chips import CHIPS
from b2b_jax.report.collectives import Collective, read_collectives


def one(line: str) -> Collective:
    (found,) = read_collectives(f"ENTRY %main (p: f32[4]) -> f32[4] {{\n  {line}\n}}\n")
    return found


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups=mesh['axis_0'=16,'axis_1'=1] {'axis_0'}", 16),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2,'axis_2'=8] {'axis_0','axis_2'}", 32),
        ("replica_groups=mesh['a'=8,'b'=2] {'a':(1)4}", 4),
        ("replica_groups=mesh['a'=4], device_ids=(3,2,1,0) {'a'}", 4),
        ("replica_groups=mesh['a'=16,'b'=4], device_ids=([4,16]T(1,0)) {'a'}", 16),
    ],
)
def test_every_spelling_of_groups_is_read(groups, size):
    found = one(f"%g = f32[64,2]{{1,0:T(8,128)}} all-gather(%p), channel_id=1, {groups}, dim=0")
    assert (found.kind, found.group, found.result_bytes) == ("all-gather", size, 512)
    assert found.sent_bytes == 512 * (size - 1) / size


@pytest.mark.parametrize(
    ("line", "kind", "result", "sent"),
    [
        ("%r = f32[8]{0} reduce-scatter(%p), replica_groups=[1,4]<=[4]", "reduce-scatter", 32, 96),
        ("%r = bf16[8]{0} all-reduce(%p), replica_groups=[1,4]<=[4]", "all-reduce", 16, 24),
        (
            "%r = (f32[2]{0}, f32[6]{0}) all-reduce(%a, %b), replica_groups=[1,2]<=[2]",
            "all-reduce",
            32,
            32,
        ),
        ("%r = f32[8]{0} all-to-all(%p), replica_groups=[1,4]<=[4]", "all-to-all", 32, 24),
        (
            "%r = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p), "
            "source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            32,
            32,
        ),
        (
            "%r = (f32[2]{0}, f32[8]{0}) all-gather-start(%p), replica_groups=[1,4]<=[4]",
            "all-gather",
            32,
            24,
        ),
    ],
)
def test_bytes_of_every_kind(line, kind, result, sent):
    found = one(line)
    assert (found.kind, found.result_bytes, found.sent_bytes) == (kind, result, sent)


LOOPS = """
HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner_body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %r = f32[4]{0} all-reduce(%x), channel_id=7, replica_groups=[1,2]<=[2], to_apply=%add
}

%inner_cond (p: (s32[], f32[4])) -> pred[] {
  %n = u32[]{:T(128)} constant(8), metadata={op_name="while"}
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %w = (s32[], f32[4]) while(%t), condition=%inner_cond, body=%inner_body
  %s = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused
}

%fused (p: f32[1]) -> f32[4] {
  %g = f32[4]{0} all-gather(%p), channel_id=3, replica_groups=[1,4]<=[4], dimensions={0}
}

%cond (p: (s32[], f32[4])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%never (p: f32[1]) -> f32[4] {
  %g = f32[4]{0} all-gather(%p), channel_id=9, replica_groups=[1,4]<=[4], dimensions={0}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]) while(%t), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"12"}}
  %s = (f32[1], f32[4]) async-start(%p), calls=%wrapped
  %d = f32[4] async-done(%s), calls=%wrapped
}

%wrapped (p: f32[1]) -> f32[4] {
  %g = f32[4]{0} all-gather(%p), channel_id=4, replica_groups=[1,4]<=[4], dimensions={0}
}
"""


def test_loops_multiply_and_what_is_not_called_does_not_count():
    found = {(each.kind, each.times) for each in read_collectives(LOOPS)}
    assert found == {("all-reduce", 96), ("all-gather", 12), ("all-gather", 1)}


def test_an_exchange_in_several_fusions_is_counted_once():
    text = LOOPS.replace("channel_id=3", "channel_id=4")
    assert [each.times for each in read_collectives(text) if each.kind == "all-gather"] == [1]


def test_the_slowest_of_the_three_binds():
    chip = CHIPS[1]
    gather = Collective("all-gather", int(chip.link_bandwidth), 2, 8, ())
    bound = step_bound(
        chip, flops=chip.flops, moved=2 * chip.memory_bandwidth, collectives=[gather]
    )
    assert (bound.binds, bound.seconds, bound.links) == ("links", 4.0, 4.0)
    assert bound.compute == 1.0 and bound.memory == pytest.approx(2.0)
