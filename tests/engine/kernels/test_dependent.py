"""What makes dependent launches right, read from builds: each program first waits for the kernel before."""

import re
from typing import Any

import pytest

triton = pytest.importorskip(
    "triton", reason="needs triton, which comes with torch for CUDA and with make test on Linux"
)

import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from engine.kernels.triton_dependent import await_previous  # noqa: E402
from tests.engine.kernels import assembly  # noqa: E402

OPTIONS = {"num_warps": 1, "launch_pdl": True}


@triton.jit
def right_kernel(x, out, DEPENDENT: tl.constexpr):  # type: ignore[no-untyped-def]
    await_previous(DEPENDENT)
    found = tl.load(x)
    if found == 0:
        return
    tl.store(out, found)


@triton.jit
def reading_kernel(x, out, DEPENDENT: tl.constexpr):  # type: ignore[no-untyped-def]
    found = tl.load(x)
    await_previous(DEPENDENT)
    tl.store(out, found)


@triton.jit
def leaving_kernel(x, out, DEPENDENT: tl.constexpr):  # type: ignore[no-untyped-def]
    if tl.program_id(0) > 3:
        return
    await_previous(DEPENDENT)
    tl.store(out, tl.load(x))


def built(kernel: Any, capability: int, *, is_dependent: bool = True) -> dict[str, Any]:
    source = ASTSource(kernel, {"x": "*i32", "out": "*i32", "DEPENDENT": "constexpr"}, {(2,): is_dependent}, {})
    found: dict[str, Any] = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=OPTIONS).asm
    return found


@pytest.mark.parametrize("capability", [90, 100])
def test_the_wait_comes_before_all_else(capability: int) -> None:
    found = built(right_kernel, capability)
    order = re.findall(r"griddepcontrol\.\w+|(?:ld|st)\.global", found["ptx"])
    assert order == ["griddepcontrol.wait", "griddepcontrol.launch_dependents", "ld.global", "st.global"]
    read = assembly.read(found["cubin"])
    assert (read.waits, read.early) == (1, [])


@pytest.mark.parametrize("kernel", [reading_kernel, leaving_kernel])
def test_what_comes_before_the_wait_is_found(kernel: Any) -> None:
    read = assembly.read(built(kernel, 90)["cubin"])
    assert read.waits == 1 and read.early


def test_without_dependence_nothing_waits() -> None:
    found = built(right_kernel, 80, is_dependent=False)
    assert "griddepcontrol" not in found["ptx"] and assembly.read(found["cubin"]).waits == 0
