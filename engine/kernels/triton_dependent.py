"""Kernels that are started while the one before still runs: programmatic dependent launch, from capability 9.0 on.

Programs of a launch that `engine.kernels.launches` makes dependent are put on processors as soon as all programs of the
kernel before have begun there and left room. They wait until that kernel is complete and what it wrote can be seen;
what starting them takes has passed meanwhile (CUDA C++ Programming Guide, programmatic dependent launch).
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def await_previous(DEPENDENT: tl.constexpr):
    """Wait for the kernel before, then let the next one begin: the first statement of all kernels that take part.

    No program may read, write or end before it. So every program of every such kernel waits until the kernel before is
    complete, and that one was complete only after its own wait: the end of the last is the end of all, and memory is
    read and written in the order of the launches. A launch that is not dependent waits for all before it anyway.
    Weights, which no kernel writes, might be read sooner; that nothing is can be seen in every build.

    On 10.0 the compiler has programs claim tensor memory before that. No program that still has to begin lacks it: all
    of the kernel before have claimed theirs, since they let this one begin only after their own wait.
    """
    if DEPENDENT:
        gdc_wait()
        gdc_launch_dependents()
