"""What is read of assembly, on kernels of a few instructions."""

import pytest

pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA and with make test on Linux")

from tests.engine.kernels.assembly import Instruction, loops_of


def code(*lines: str) -> list[Instruction]:
    """Instructions 16 bytes apart, as `@P0 BRA 0x30`."""
    found = []
    for number, line in enumerate(lines):
        when, _, rest = line.rpartition("@P0 ")
        name, _, operands = rest.partition(" ")
        found.append(Instruction(16 * number, bool(when or line.startswith("@")), name, operands))
    return found


def test_a_loop_is_what_comes_back_to_its_beginning_inner_ones_first() -> None:
    found = loops_of(code("MOV", "LDG", "LDL", "@P0 BRA 0x20", "STL", "@P0 BRA 0x10", "EXIT"))
    assert found == [{2, 3}, {1, 2, 3, 4, 5}]


def test_what_waits_behind_the_end_and_jumps_back_makes_no_loop_of_what_stands_between() -> None:
    """As kernels for 10.0 wait for their matrix units (issue 15)."""
    lines = ("STL", "SYNCS", "@P0 BRA 0x50", "LDL", "EXIT", "SYNCS", "@P0 BRA 0x50", "BRA 0x30", "BRA 0x80")
    assert loops_of(code(*lines)) == [{5, 6}], "nor does what fills the end, which jumps to itself"


def test_what_a_loop_waits_in_behind_the_end_is_a_part_of_it() -> None:
    lines = ("MOV", "LDL", "@P0 BRA 0x60", "STL", "BRA.U !UP1, 0x10", "EXIT", "YIELD", "BRA 0x30")
    assert loops_of(code(*lines)) == [{1, 2, 3, 4, 6, 7}]
