"""GPUs by name: what memory each has, what it computes in and how fast, for those who have none at hand.

Memory is what NVIDIA's driver tells (nvidia-smi). Rates are those of NVIDIA's data sheets, of boards with SXM where
there are others too; the A10G's are Amazon's for G5; those of GeForce cards are in the appendices of the architectures'
white papers (Ampere GA102, Ada, RTX Blackwell). The B200's bandwidth is that of HGX boards in the Blackwell data sheet,
7.7 TB/s, which is what its bus makes, 7,680 bits at twice 3,996 MHz (github.com/pytorch/ao/pull/4002); others say 8.
"""

import re
from dataclasses import dataclass

from engine.config import MOST_RANKS
from engine.costs import Ceilings
from engine.errors import ConfigError
from engine.sizing.shape import FP8_CAPABILITY

BANDWIDTH_SHARE = 0.9
"""Of the bandwidth of a data sheet, what a large copy reaches: 3.03 of 3.35 TB/s on an H100
(bench/results/2026-11-26-gpu-after.json), taken to be the same elsewhere."""
FLOPS_SHARE = 0.8
"""Of the operations of a data sheet, what a large product reaches: 787 of 989 TFLOP/s in bf16 and 1,534 of 1,979 in FP8
there."""
NVLINK_3, NVLINK_4, NVLINK_5 = 300, 450, 900
PCIE_4, PCIE_5 = 32, 64


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU."""

    name: str
    """As `headrace models --gpu` takes it."""
    title: str
    memory_mib: int
    """In all, as NVIDIA's driver tells it (nvidia-smi)."""
    capability: tuple[int, int]
    gigabytes: int
    """That its memory moves a second, of 10⁹ bytes each."""
    teraflops: float
    """Of 10¹² operations a second of dense products in bf16, summed in fp32."""
    fp8_teraflops: float | None
    """The same in e4m3; None where it has none."""
    link_gigabytes: int
    """That it sends to other GPUs a second while it receives as many, over NVLink where all GPUs of a machine have it,
    else over the bus."""

    @property
    def num_bytes(self) -> int:
        """All its memory."""
        return self.memory_mib * 2**20

    @property
    def does_fp8(self) -> bool:
        """Whether `quantization: fp8` and `kv_dtype: fp8` work there."""
        return self.capability >= FP8_CAPABILITY

    @property
    def ceilings(self) -> Ceilings:
        """What it does at best."""
        fp8 = None if self.fp8_teraflops is None else self.fp8_teraflops * 1e12 * FLOPS_SHARE
        return Ceilings(self.gigabytes * 1e9 * BANDWIDTH_SHARE, self.teraflops * 1e12 * FLOPS_SHARE, fp8)

    @property
    def link(self) -> float:
        """Bytes a second to other GPUs."""
        return self.link_gigabytes * 1e9


@dataclass(frozen=True, slots=True)
class Gpus:
    """Some GPUs of one kind in one machine."""

    gpu: Gpu
    count: int = 1

    def __str__(self) -> str:
        return self.gpu.title if self.count == 1 else f"{self.count} x {self.gpu.title}"


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("l4", "L4", 23_034, (8, 9), 300, 121, 242, PCIE_4),
        Gpu("a10g", "A10G", 23_028, (8, 6), 600, 70, None, PCIE_4),
        Gpu("3090", "GeForce RTX 3090", 24_576, (8, 6), 936, 71, None, PCIE_4),
        Gpu("4090", "GeForce RTX 4090", 24_564, (8, 9), 1008, 165.2, 330.3, PCIE_4),
        Gpu("5090", "GeForce RTX 5090", 32_607, (12, 0), 1792, 209.5, 419, PCIE_5),
        Gpu("a100-40", "A100 40GB", 40_960, (8, 0), 1555, 312, None, NVLINK_3),
        Gpu("l40s", "L40S", 46_068, (8, 9), 864, 362, 733, PCIE_4),
        Gpu("a100-80", "A100 80GB", 81_920, (8, 0), 2039, 312, None, NVLINK_3),
        Gpu("h100", "H100 80GB", 81_559, (9, 0), 3350, 989, 1979, NVLINK_4),
        Gpu("h200", "H200", 143_771, (9, 0), 4800, 989, 1979, NVLINK_4),
        Gpu("b200", "B200", 183_359, (10, 0), 7700, 2250, 4500, NVLINK_5),
    )
}
"""By name, the smaller ones first. The kernels are built for 8.0 to 10.0; what is beyond is computed, not tried."""

_WRITTEN = re.compile(r"(?:([1-9][0-9]?)x)?([a-z0-9-]+)")


def parse_gpus(text: str) -> Gpus:
    """What `h200` and `8xh200` mean, in any case. Raises ConfigError for anything else."""
    found = _WRITTEN.fullmatch(text.lower())
    if found is None or found[2] not in GPUS or int(found[1] or 1) > MOST_RANKS:
        raise ConfigError(
            f"--gpu: {text!r} is no kind of GPU, or number of them: it is written as h200 or 8xh200, from 1 to "
            f"{MOST_RANKS} of {', '.join(GPUS)}"
        )
    return Gpus(GPUS[found[2]], int(found[1] or 1))
