"""Products with quantised weights, held against the same weights unpacked by the `gguf` package."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from engine.kernels import build
from engine.kernels.cpu_quantized import (
    ACTIVATION_BITS,
    FORMATS,
    QuantizedProduct,
    QuantizedWeight,
    Room,
    is_available,
    pack,
    packed_size,
)
from tests.places import ROOT

pytestmark = pytest.mark.skipif(not is_available(), reason="no C compiler here")
SOURCE = Path(build.__file__).with_name("cpu_layer.c")
HALVES = {8: 1, 2: 1, 6: 1, 3: 2, 7: 2, 12: 2, 13: 2}
"""How many scales stand at the beginning of a format's block; of Q6_K the one stands at the end."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products wait for a second thread longer than they take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_blocks(number: int, outputs: int, size: int, seed: int = 0) -> np.ndarray:
    """Blocks of every bit pattern, with scales as weights have them: uint8 `[outputs, bytes of a row]`."""
    rng = np.random.default_rng(seed)
    elements, size_of = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
    blocks = rng.integers(0, 256, (outputs, size // elements, size_of), dtype=np.uint8)
    for place in range(HALVES.get(number, 1)):
        scales = (rng.standard_normal((outputs, size // elements, 1)) * 0.01).astype(np.float16)
        at = 208 if number == 14 else 2 * place
        blocks[..., at : at + 2] = scales.view(np.uint8)
    return np.ascontiguousarray(blocks.reshape(outputs, -1))


def unpacked(number: int, blocks: np.ndarray) -> torch.Tensor:
    """fp64 `[outputs, size]`."""
    return torch.from_numpy(dequantize(blocks, GGMLQuantizationType(number))).double()


def bound(x: torch.Tensor, weight: torch.Tensor, bits: int) -> torch.Tensor:
    """How far a product may be from the exact one: activations in `bits`, sums in fp32; fp64 `[rows, outputs]`."""
    blocks = x.double().abs().unflatten(1, (-1, 32))
    rounding = (blocks.amax(-1, keepdim=True) / (2**bits - 2)).expand_as(blocks).flatten(1)
    return torch.as_tensor(rounding @ weight.abs().T + 2e-6 * (x.double().abs() @ weight.abs().T))


def check(x: torch.Tensor, number: int, outputs: int, bits: int, *, bias: torch.Tensor | None = None) -> None:
    blocks = random_blocks(number, outputs, x.shape[1])
    weight = unpacked(number, blocks)
    result = product_of([pack(blocks, number, x.shape[1], Room())], bits, bias)(x)
    exact = x.double() @ weight.T + (0 if bias is None else bias.double())
    assert result.shape == exact.shape
    assert ((result.double() - exact).abs() <= bound(x, weight, bits)).all()


def product_of(weights: list[QuantizedWeight], bits: int, bias: torch.Tensor | None = None) -> QuantizedProduct:
    product = QuantizedProduct(weights, bias)
    product.round_to(bits)
    return product


both_bits = pytest.mark.parametrize("bits", ACTIVATION_BITS)


@both_bits
@pytest.mark.parametrize("number", FORMATS, ids=FORMATS.values())
@pytest.mark.parametrize("outputs", [1, 7, 8, 9, 16, 17, 40, 61])
def test_a_product_is_that_of_the_unpacked_weights(number: int, outputs: int, bits: int) -> None:
    torch.manual_seed(outputs)
    size = GGML_QUANT_SIZES[GGMLQuantizationType(number)][0] * 3
    for rows in (1, 2, 3, 4, 5, 7, 64, 65, 70):
        check(torch.randn(rows, size), number, outputs, bits, bias=torch.randn(outputs))


@both_bits
@pytest.mark.parametrize("number", FORMATS, ids=FORMATS.values())
def test_rows_of_every_number_and_size_are_met(number: int, bits: int) -> None:
    for rows in range(1, 71, 3):
        check(torch.randn(rows, 256) * 10.0 ** (rows % 7 - 3), number, 16, bits)
    for size in (256, 512, 2304, 8960):
        check(torch.randn(2, size), number, 24, bits)


@both_bits
@pytest.mark.parametrize("number", FORMATS, ids=FORMATS.values())
def test_the_largest_whole_numbers_fit(number: int, bits: int) -> None:
    """Sums are kept in as few bits as they may be."""
    blocks = random_blocks(number, 16, 512)
    elements, size_of = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
    every = np.full((16, 512 // elements, size_of), 255, np.uint8)
    if number == 8:
        every[..., 2:] = 128  # -128, of the largest size
    taken = blocks.reshape(every.shape)
    for place in range(HALVES.get(number, 1)):
        at = 208 if number == 14 else 2 * place
        every[..., at : at + 2] = taken[..., at : at + 2]
    for bits_of_weights in (every, np.where(every == 255, 0, every).astype(np.uint8)):
        same = np.ascontiguousarray(bits_of_weights.reshape(16, -1))
        product = product_of([pack(same, number, 512, Room())], bits)
        weight = unpacked(number, same)
        for x in (torch.ones(5, 512), -torch.ones(5, 512), torch.ones(1, 512)):
            exact = x.double() @ weight.T
            near = 2e-6 * (x.double().abs() @ weight.abs().T) + 1e-9
            assert ((product(x).double() - exact).abs() <= near).all()


@both_bits
@pytest.mark.parametrize("number", FORMATS, ids=FORMATS.values())
def test_no_row_depends_on_its_neighbours(number: int, bits: int) -> None:
    product = product_of([pack(random_blocks(number, 40, 768), number, 768, Room())], bits)
    x = torch.randn(70, 768)
    whole = product(x)
    for rows in (1, 2, 3, 4, 6, 13, 64):
        for start in (0, 5, 70 - rows):
            assert torch.equal(product(x[start : start + rows].contiguous()), whole[start : start + rows])


@both_bits
def test_threads_change_nothing(bits: int) -> None:
    product = product_of([pack(random_blocks(12, 512, 768), 12, 768, Room())], bits)
    x = torch.randn(9, 768)
    alone = product(x)
    torch.set_num_threads(2)
    assert torch.equal(product(x), alone)


@both_bits
def test_several_weights_stand_beside_one_another(bits: int) -> None:
    numbers, outputs = (12, 14, 8), (20, 9, 33)
    weights = [pack(random_blocks(n, rows, 512, n), n, 512, Room()) for n, rows in zip(numbers, outputs, strict=True)]
    x, bias = torch.randn(6, 512), torch.randn(sum(outputs))
    alone = torch.cat([product_of([weight], bits)(x) for weight in weights], dim=1)
    assert torch.equal(product_of(weights, bits, bias)(x), alone + bias)


@both_bits
def test_outliers_zeros_and_what_is_no_number(bits: int) -> None:
    blocks = random_blocks(3, 8, 64)
    product = product_of([pack(blocks, 3, 64, Room())], bits)
    x = torch.zeros(5, 64)
    x[1, 3], x[2, :], x[3, 40], x[4, 5] = 1e30, 1e-38, float("nan"), float("inf")
    result = product(x)
    assert (result[0] == 0).all()
    assert torch.allclose(result[1].double(), x[1].double() @ unpacked(3, blocks).T, rtol=1e-4)
    assert result[2].isfinite().all()
    assert result[3].isnan().all() and result[4].isnan().all()


def test_what_is_not_known_has_no_size() -> None:
    assert packed_size(2, 8, 33) == 0, "no whole number of blocks"
    assert packed_size(12, 8, 288) == 0
    assert packed_size(1, 8, 256) == 0 and packed_size(99, 8, 256) == 0
    together = packed_size(3, 1, 64) // (2 * 20)
    assert together in (8, 16), "outputs of a vector"
    assert packed_size(3, together, 64) == 2 * together * 20 and packed_size(3, together + 1, 64) == 4 * together * 20


@pytest.mark.parametrize("options", ["-march=native", "-march=x86-64", "-march=sapphirerapids"])
def test_it_compiles_without_a_warning(options: str, tmp_path: Path) -> None:
    """With this machine's vectors, without any, and with the widest."""
    compiler = shutil.which("cc")
    assert compiler
    flags = [flag for flag in build.FLAGS.split() if not flag.startswith("-march")]
    warned = [*flags, options, "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *warned, "-o", str(tmp_path / "k.so"), str(SOURCE), "-lm"], check=True)


def test_all_processors_compute_the_same(tmp_path: Path) -> None:
    """With this one's vectors, with narrower ones, and in plain C, which no vector instructions are named in."""
    compiler = shutil.which("cc")
    assert compiler
    flags = [flag for flag in build.FLAGS.split() if not flag.startswith("-march")]
    libraries = ["-"]
    for processor in ("x86-64", "x86-64-v3")[: 2 if " avx2 " in Path("/proc/cpuinfo").read_text() else 1]:
        libraries.append(str(tmp_path / f"{processor}.so"))
        subprocess.run([compiler, *flags, f"-march={processor}", "-o", libraries[-1], SOURCE, "-lm"], check=True)
    results = []
    for library in libraries:
        saved = tmp_path / "results"
        subprocess.run([sys.executable, "-c", _PRODUCTS, library, str(saved)], check=True, cwd=ROOT)
        results.append(torch.load(saved))
    assert len(results[0]) == 8 * len(FORMATS)
    for others in results[1:]:
        for own, other in zip(results[0], others, strict=True):
            torch.testing.assert_close(other, own, rtol=1e-5, atol=1e-4)


_PRODUCTS = """
import ctypes, sys, torch
from engine.kernels import cpu_quantized
if sys.argv[1] != "-":
    cpu_quantized.built = lambda name: ctypes.CDLL(sys.argv[1])
from tests.engine.kernels.test_cpu_quantized import random_blocks
torch.manual_seed(1)
products = []
for number in cpu_quantized.FORMATS:
    weight = cpu_quantized.pack(random_blocks(number, 17, 512), number, 512, cpu_quantized.Room())
    product = cpu_quantized.QuantizedProduct([weight])
    for bits in cpu_quantized.ACTIVATION_BITS:
        product.round_to(bits)
        products += [product(torch.randn(rows, 512)) for rows in (5, 1, 2, 4)]
torch.save(products, sys.argv[2])
"""


DRIVER = r"""
#include "SOURCE"
#include <stdio.h>
int main(void) {
    const int64_t formats[] = {2, 3, 6, 7, 8, 12, 13, 14}, outputs[] = {1, 8, 17, 40}, rows[] = {1, 2, 3, 5, 65};
    for (int f = 0; f < 8; f++) for (int o = 0; o < 4; o++) for (int r = 0; r < 5; r++) {
        const Layout *layout = layout_of(formats[f]);
        int64_t size = 512, bytes = outputs[o] * (size / layout->weights) * layout->block_bytes;
        uint8_t *blocks = malloc(bytes), *packed = malloc(packed_bytes(formats[f], outputs[o], size));
        float *x = malloc(rows[r] * size * 4), *out = malloc(rows[r] * outputs[o] * 4), *bias = calloc(outputs[o], 4);
        for (int64_t i = 0; i < bytes; i++) blocks[i] = (uint8_t)(i * 37 % 61);
        for (int64_t i = 0; i < rows[r] * size; i++) x[i] = (float)(i % 17) - 8.0f;
        pack_quantized(packed, blocks, formats[f], outputs[o], size);
        Part part = {packed, outputs[o], formats[f]};
        for (int bits = 8; bits <= 16; bits += 8) {
            Linear linear = {&part, 1, size, bias, bits};
            if (quantized_linear(out, x, &linear, rows[r])) return 1;
        }
        free(blocks), free(packed), free(x), free(out), free(bias);
    }
    puts("done");
    return 0;
}
"""


@pytest.mark.slow
def test_nothing_is_read_or_written_out_of_bounds(tmp_path: Path) -> None:
    run_under_sanitizers(DRIVER, tmp_path)


def run_under_sanitizers(driver: str, tmp_path: Path, of: Path = SOURCE) -> None:
    """Build a program around a C source that says "done" at its end, and run it."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("the sanitizers are tried with gcc, which is missing")
    source, program = tmp_path / "driver.c", tmp_path / "driver"
    source.write_text(driver.replace("SOURCE", str(of)))
    checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags = ["-O1", "-g", "-march=native", "-fno-math-errno", *checks]
    subprocess.run([compiler, *flags, "-o", str(program), str(source), "-lm"], check=True)
    result = subprocess.run([str(program)], capture_output=True, text=True)
    assert result.stdout == "done\n", result.stderr


def test_weights_are_values(tmp_path: Path) -> None:
    weight = pack(random_blocks(3, 8, 64), 3, 64, Room())
    assert isinstance(weight, QuantizedWeight) and (weight.outputs, weight.size, weight.format) == (8, 64, 3)
    assert weight.packed.nbytes == packed_size(3, 8, 64)


def test_a_room_gives_memory_that_nobody_else_has() -> None:
    room = Room()
    sizes = [1, 63, 64, 65, 1000, 40 << 20, 7]
    taken = [room.take(size) for size in sizes]
    places = sorted((part.data_ptr(), part.data_ptr() + len(part)) for part in taken)
    assert all(start % 64 == 0 for start, _ in places)
    assert all(end <= start for (_, end), (start, _) in pairwise(places))
    assert [len(part) for part in taken] == sizes
