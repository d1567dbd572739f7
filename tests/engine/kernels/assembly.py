"""What the assembly of a built kernel says of it, by the programs that Triton brings."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

REGISTERS, SHARED, THREADS = (
    65536,
    {80: 164, 89: 100, 90: 228, 100: 228, 120: 100},
    {80: 2048, 89: 1536, 90: 2048, 100: 2048, 120: 1536},
)
"""Of a processor: registers, KiB of shared memory, threads (CUDA C++ Programming Guide, technical specifications)."""
RESERVED = 1024
"""Bytes of shared memory that each program takes beside its own."""
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?(\S+)(.*?);")
WAIT = "ACQBULK"
"""What `griddepcontrol.wait` becomes."""
_LEAVES_OR_TOUCHES_MEMORY = re.compile(
    r"(LDG|LD|ST|STG|LDGSTS|ATOM|ATOMG|RED|REDG|CCTL|U?TM\w+|UBLK\w+|EXIT|RET)(\.|$)"
)
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")


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
    code = [(int(place, 16), name, rest) for place, name, rest in _INSTRUCTION.findall(said)]
    assert code, said
    numbers = {place: number for number, (place, _, _) in enumerate(code)}
    loops = []
    for number, (place, name, rest) in enumerate(code):
        target = re.search(r"0x([0-9a-f]+)", rest) if name.startswith("BRA") else None
        if target is not None and int(target[1], 16) < place:
            loops.append(Counter(name.split(".")[0] for _, name, _ in code[numbers[int(target[1], 16)] : number + 1]))
    waits = [place for place, name, _ in code if name == WAIT]
    return Assembly(int(found[1]), int(found[2]), loops, len(waits), early_ones(code, waits[0]) if waits else [])


def early_ones(code: list[tuple[int, str, str]], wait: int) -> list[str]:
    """See `Assembly.early`; `wait` is the place of the first. Tensor memory, claimed before on 10.0, is its own."""
    found = []
    for place, name, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest) if name.startswith("BRA") else None
        passes = target is not None and int(target[1], 16) > wait
        if ".CONSTANT" in name or (place < wait and (passes or _LEAVES_OR_TOUCHES_MEMORY.match(name))):
            found.append(name)
    return found


def programs_per_processor(capability: int, assembly: Assembly, shared: int, num_warps: int) -> int:
    """Programs that a processor has room for at a time."""
    registers = -(-assembly.registers // 8) * 8 * 32 * num_warps
    return min(
        REGISTERS // registers,
        SHARED[capability] * 1024 // (shared + RESERVED),
        THREADS[capability] // (32 * num_warps),
    )
