"""GPUs by name: what memory each has and what it computes in, for those who have none at hand."""

from dataclasses import dataclass

from engine.sizing.shape import FP8_CAPABILITY


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU."""

    name: str
    """As `headrace models --gpu` takes it."""
    title: str
    memory_mib: int
    """In all, as NVIDIA's driver tells it (nvidia-smi)."""
    capability: tuple[int, int]

    @property
    def num_bytes(self) -> int:
        """All its memory."""
        return self.memory_mib * 2**20

    @property
    def does_fp8(self) -> bool:
        """Whether `quantization: fp8` and `kv_dtype: fp8` work there."""
        return self.capability >= FP8_CAPABILITY


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("l4", "L4", 23_034, (8, 9)),
        Gpu("a10g", "A10G", 23_028, (8, 6)),
        Gpu("3090", "GeForce RTX 3090", 24_576, (8, 6)),
        Gpu("4090", "GeForce RTX 4090", 24_564, (8, 9)),
        Gpu("5090", "GeForce RTX 5090", 32_607, (12, 0)),
        Gpu("a100-40", "A100 40GB", 40_960, (8, 0)),
        Gpu("l40s", "L40S", 46_068, (8, 9)),
        Gpu("a100-80", "A100 80GB", 81_920, (8, 0)),
        Gpu("h100", "H100 80GB", 81_559, (9, 0)),
        Gpu("h200", "H200", 143_771, (9, 0)),
        Gpu("b200", "B200", 183_359, (10, 0)),
    )
}
"""By name, the smaller ones first. The kernels are built for 8.0 to 10.0; what is beyond is computed, not tried."""
