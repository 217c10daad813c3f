"""A compiled module's text, added up: every figure here was worked out by hand."""

import pytest

from infra.hlo import parse, shape_bytes
from infra.hlo_account import account

LOOP = """HloModule step, is_scheduled=true

%body (state: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %state = (s32[], f32[8,16]{1,0}) parameter(0)
  %round = s32[] get-tuple-element(%state), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%state), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%round, %one)
  %weight = f32[16,16]{1,0} constant({...})
  %product = f32[8,16]{1,0} dot(%x, %weight), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %sum = f32[8,16]{1,0} all-reduce(%product), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %out = (s32[], f32[8,16]{1,0}) tuple(%next, %sum)
}

%condition (state: (s32[], f32[8,16])) -> pred[] {
  %state = (s32[], f32[8,16]{1,0}) parameter(0)
  %round = s32[] get-tuple-element(%state), index=0
  %limit = s32[] constant(LIMIT)
  ROOT %less = pred[] compare(%round, %limit), direction=LT
}

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,16]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[8,16]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %result = f32[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.mark.parametrize("rounds", [0, 1, 23])
def test_a_loop_counts_as_often_as_it_goes_round(rounds: int) -> None:
    counted = account(LOOP.replace("LIMIT", str(rounds)))
    assert counted.matrix_flops == rounds * 2 * 8 * 16 * 16
    assert not counted.unknown_loops
    (sum_,) = counted.collectives
    assert (sum_.kind, sum_.operand_bytes, sum_.group, sum_.times) == ("all-reduce", 8 * 16 * 4, 4, rounds)


def test_the_compilers_own_count_comes_first() -> None:
    noted = LOOP.replace("LIMIT", "23").replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    )
    assert account(noted).collectives[0].times == 7


def test_a_loop_of_unknown_length_is_named_and_counts_once() -> None:
    text = LOOP.replace("%zero = s32[] constant(0)", "%zero = s32[] custom-call()")
    counted = account(text.replace("LIMIT", "5"))
    assert counted.unknown_loops == ["loop"]
    assert counted.collectives[0].times == 1


def test_hbm_bytes_are_operands_and_results_that_lie_in_hbm() -> None:
    product, reduced = (8 * 16 + 16 * 16 + 8 * 16) * 4, (8 * 16 + 8 * 16) * 4
    scalars = 4 * 3  # the counter's addition
    assert account(LOOP.replace("LIMIT", "1")).hbm_bytes == product + reduced + scalars
    elsewhere = LOOP.replace("LIMIT", "1").replace(
        "%weight = f32[16,16]{1,0} constant", "%weight = f32[16,16]{1,0:S(1)} constant"
    )
    assert account(elsewhere).hbm_bytes == product + reduced + scalars - 16 * 16 * 4


def test_a_text_without_an_entry_is_refused() -> None:
    with pytest.raises(AssertionError, match="no ENTRY computation"):
        parse("HloModule nothing")


@pytest.mark.parametrize(
    ("shape", "size"),
    [("bf16[4,8]{1,0}", 64), ("(f32[2]{0}, s4[3]{0})", 8 + 2), ("pred[]", 1), ("f32[3]{0:S(1)}", 12)],
)
def test_bytes_of_a_shape(shape: str, size: int) -> None:
    assert shape_bytes(shape) == size
