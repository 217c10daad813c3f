"""What the compiler says when a program does not fit, read back."""

import pytest

from infra.aot import compile_answer, parse_allocations, parse_out_of_memory, parse_size, traffic
from infra.hlo_account import Collective
from infra.slices import parse_topology

REFUSAL = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.44G of 15.75G hbm. Exceeded by 2.69G.

Total hbm usage >= 18.69G:

  Largest program allocations in hbm:

  1. Size: 2.25G
     Operator: op_name="jit(step)/while/body/dot_general"
     Shape: f32[4,8192,18432]{2,1,0:T(8,128)}
     Unpadded size: 2.25G
     XLA label: fusion.12 = fusion(copy.3), kind=kOutput
     Allocation type: HLO temp
     ==========================

  2. Size: 512.0K
     Shape: f32[131072]{0}
     XLA label: copy.7 = copy(x)
     Allocation type: global
     ==========================
"""


def test_a_refusal_says_what_was_asked_for_and_what_there_is() -> None:
    assert parse_out_of_memory(REFUSAL) == (round(18.44 * 2**30), round(15.75 * 2**30))
    assert parse_out_of_memory("INTERNAL: Mosaic failed to compile") is None


def test_the_largest_allocations_are_named() -> None:
    (allocation,) = parse_allocations(REFUSAL)  # half a megabyte is no answer to why
    assert allocation.bytes == round(2.25 * 2**30)
    assert (allocation.shape, allocation.kind, allocation.label) == ("f32[4,8192,18432]", "HLO temp", "fusion.12")
    assert allocation.operator == "jit(step)/while/body/dot_general"


@pytest.mark.parametrize(("text", "size"), [("17B", 17), ("1.5K", 1536), ("2.50G", 5 * 2**29), ("12", 12)])
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_traffic_is_summed_by_kind_and_kept_apart_by_network() -> None:
    inside = Collective(kind="all-gather", operand_bytes=100, group=4, times=3, between_slices=False)
    between = Collective(kind="all-gather", operand_bytes=100, group=2, times=1, between_slices=True)
    (gathers,) = traffic([inside, between])
    assert (gathers.calls, gathers.operand_bytes, gathers.ici_bytes, gathers.dcn_bytes) == (4, 400, 900, 100)


def test_a_program_for_another_number_of_chips_is_refused() -> None:
    with pytest.raises(AssertionError, match="8 partitions, but v5e:4x4 x 1 has 16 chips"):
        compile_answer(b"", parse_topology("v5e:4x4"), num_partitions=8, donated=())
