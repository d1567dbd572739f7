"""What the assembly of a built kernel says of it, by the programs that Triton brings."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import triton

REGISTERS, SHARED, THREADS = (
    65536,
    {80: 164, 89: 100, 90: 228, 100: 228, 120: 100},
    {80: 2048, 89: 1536, 90: 2048, 100: 2048, 120: 1536},
)
"""Of a processor: registers, KiB of shared memory, threads (CUDA C++ Programming Guide, technical specifications)."""
RESERVED = 1024
"""Bytes of shared memory that each program takes beside its own."""
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ )?(\S+)(.*?);")
WAIT = "ACQBULK"
"""What `griddepcontrol.wait` becomes."""
_LEAVES_OR_TOUCHES_MEMORY = re.compile(
    r"(LDG|LD|ST|STG|LDGSTS|ATOM|ATOMG|RED|REDG|CCTL|U?TM\w+|UBLK\w+|EXIT|RET)(\.|$)"
)
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")


class Instruction(NamedTuple):
    """One of a kernel's."""

    place: int
    is_predicated: bool
    name: str
    rest: str
    """Its operands."""

    @property
    def targets(self) -> list[int]:
        """Where it may jump to."""
        return [int(place, 16) for place in re.findall(r"0x([0-9a-f]+)", self.rest)] if self.name[:3] == "BRA" else []

    @property
    def ends(self) -> bool:
        """Whether what stands behind it does not come next, unless it is conditional."""
        return self.name.split(".")[0] in ("BRA", "EXIT", "RET")

    @property
    def is_conditional(self) -> bool:
        """Whether it may do nothing. A jump may name what it depends on before where it goes."""
        return self.is_predicated or (self.name[:3] == "BRA" and "," in self.rest)


@dataclass(frozen=True, slots=True)
class Assembly:
    """One kernel."""

    registers: int
    """Of a thread."""
    stack: int
    """Bytes of a thread."""
    loops: list[Counter[str]]
    """Of each loop, inner ones first: how often each instruction stands there, without what follows a dot."""
    waits: int
    """For the kernel before, in a dependent launch."""
    early: list[str]
    """Instructions that may read or write what other kernels have before the first wait, or leave; and, wherever they
    stand, those that read past what a wait makes sure of."""


def read(cubin: bytes) -> Assembly:
    """Disassemble."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [str(tool), "-sass", "-res-usage", str(path)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = _RESOURCES.search(said)
    assert found is not None, said
    code = [
        Instruction(int(place, 16), bool(when), name, rest) for place, when, name, rest in _INSTRUCTION.findall(said)
    ]
    assert code, said
    loops = [Counter(code[number].name.split(".")[0] for number in loop) for loop in loops_of(code)]
    waits = [one.place for one in code if one.name == WAIT]
    return Assembly(int(found[1]), int(found[2]), loops, len(waits), early_ones(code, waits[0]) if waits else [])


def loops_of(code: list[Instruction]) -> list[set[int]]:
    """Numbers of the instructions of each loop, inner ones first.

    A jump backwards ends a loop only where all ways to it lead through where it goes: what waits longer stands behind
    the end of a kernel, and jumps back into the midst of it.
    """
    numbers = {one.place: number for number, one in enumerate(code)}
    after: list[list[int]] = [[] for _ in code]
    before: list[list[int]] = [[] for _ in code]
    for number, one in enumerate(code):
        goes_on = [] if one.ends and not one.is_conditional else [number + 1]
        after[number] = [*goes_on, *(numbers[place] for place in one.targets if place in numbers)]
        for other in after[number]:
            if other < len(code):
                before[other].append(number)
    loops = []
    for number, one in enumerate(code):
        for start in after[number] if one.targets else ():
            if start < number and number not in _reached(0, after, but=start):
                loops.append({start, *_reached(number, before, but=start)})
    return loops


def _reached(start: int, ways: list[list[int]], *, but: int) -> set[int]:
    """Numbers on ways from one on that do not pass another."""
    found, left = set(), [start]
    while left:
        number = left.pop()
        if number != but and number not in found and number < len(ways):
            found.add(number)
            left += ways[number]
    return found


def early_ones(code: list[Instruction], wait: int) -> list[str]:
    """See `Assembly.early`; `wait` is the place of the first. Tensor memory, claimed before on 10.0, is its own."""
    found = []
    for one in code:
        passes = any(place > wait for place in one.targets)
        if ".CONSTANT" in one.name or (one.place < wait and (passes or _LEAVES_OR_TOUCHES_MEMORY.match(one.name))):
            found.append(one.name)
    return found


def programs_per_processor(capability: int, assembly: Assembly, shared: int, num_warps: int) -> int:
    """Programs that a processor has room for at a time."""
    registers = -(-assembly.registers // 8) * 8 * 32 * num_warps
    return min(
        REGISTERS // registers,
        SHARED[capability] * 1024 // (shared + RESERVED),
        THREADS[capability] // (32 * num_warps),
    )
