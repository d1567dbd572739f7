"""What a model needs: from its files, from what is declared, from what was measured; and what there is to have."""

from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.sizing.fit import RANK_BYTES
from server.fleet import devices
from server.fleet.devices import DeviceMemory, budgets
from server.fleet.needs import PROCESS_BYTES, Needs
from tests.server.fakes import engine_config
from tests.server.prompt.test_plan import engine_info

GIB = 2**30
MACHINE = {"cpu": DeviceMemory(100 * GIB, 80 * GIB), "cuda:0": DeviceMemory(50 * GIB, 40 * GIB)}


def needs(tmp_path: Path, budget: str = "auto") -> Needs:
    return Needs(MACHINE, budgets(MACHINE, budget), tmp_path / "cache" / "needs.json")


def test_budgets_are_given_as_memory_is() -> None:
    assert budgets(MACHINE, "auto") == {"cpu": 72 * GIB, "cuda:0": round(0.97 * 40 * GIB)}
    assert budgets(MACHINE, "0.5") == {"cpu": 50 * GIB, "cuda:0": 25 * GIB}
    assert budgets(MACHINE, "4GiB") == {"cpu": 4 * GIB, "cuda:0": 4 * GIB}
    with pytest.raises(ConfigError):
        budgets(MACHINE, "much")


def test_what_is_not_known_is_estimated(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    (tmp_path / "m" / "model.safetensors").write_bytes(bytes(1000))
    found = needs(tmp_path, "8GiB").find(EngineConfig(name="m", source=str(tmp_path / "m"), memory="2GiB"))
    assert (found.device, found.rest, found.kv) == ("cuda:0", 1000 + PROCESS_BYTES, 2 * GIB) and not found.is_measured
    (tmp_path / "m" / "config.json").write_text('{"torch_dtype": "float32"}')
    for dtype, weights in (("auto", 500), ("float32", 1000)):
        config = EngineConfig(name="m", source=str(tmp_path / "m"), dtype=dtype)  # type: ignore[arg-type]
        assert needs(tmp_path).find(config).rest == weights + PROCESS_BYTES
    away = EngineConfig(name="m", source="org/away", device="cpu", memory="0.25")
    assert needs(tmp_path).find(away, size=5 * GIB).num_bytes == 5 * GIB + PROCESS_BYTES + 25 * GIB
    eight_bits = EngineConfig(name="m", source="org/away", quantization="fp8", memory="1GiB")
    assert needs(tmp_path).find(eight_bits, size=4 * GIB).rest == 2 * GIB + PROCESS_BYTES
    unknown = needs(tmp_path, "8GiB").find(EngineConfig(name="m", source="org/away"))
    assert (unknown.rest, unknown.kv) == (2 * GIB + PROCESS_BYTES, GIB)
    # An automatic cache makes do with what is left; weights that do not fit stay too large, unless they are tried.
    full = needs(tmp_path, "8GiB").find(EngineConfig(name="m", source="org/away"), size=7 * GIB)
    assert full.num_bytes == 8 * GIB and full.kv == GIB - PROCESS_BYTES
    large = needs(tmp_path, "8GiB").find(EngineConfig(name="m", source="org/away"), size=9 * GIB)
    assert large.num_bytes > 8 * GIB and large.at_most(8 * GIB).num_bytes == 8 * GIB


@pytest.mark.parametrize(
    ("source", "settings", "weights"),
    [
        ("random://Llama-3.1-8B", {}, 2 * 8_030_261_248),
        ("random://Llama-3.1-8B", {"dtype": "float32"}, 4 * 8_030_261_248),
        ("random://Llama-3.1-8B?num_hidden_layers=1", {}, 2 * (2 * 128_256 * 4096 + 4096 + 218_112_000)),
        ("random://Llama-3.1-8B", {"device": "cuda", "tensor_parallel": 2}, 8_030_261_248),
        # A checkpoint that is not here may be of another form than the shape that ships under its name.
        ("deepseek-ai/DeepSeek-R1", {}, 25 * GIB // 2),
        ("random://llama?hidden_size=64", {}, 25 * GIB // 2),  # the other sizes are transformers' own
    ],
)
def test_what_lies_in_no_file_is_counted_by_its_configuration(
    tmp_path: Path, source: str, settings: dict[str, Any], weights: int
) -> None:
    config = EngineConfig(name="m", source=source, memory="1GiB", **settings)
    beside = RANK_BYTES if config.tensor_parallel > 1 else 0
    assert needs(tmp_path, "50GiB").find(config).rest == weights + PROCESS_BYTES + beside


def test_what_was_measured_holds_for_the_next_server(tmp_path: Path) -> None:
    config = EngineConfig(name="m", source="org/away", memory="1GiB")
    info = engine_info(device="cpu", weights_bytes=3 * GIB, kv_bytes=GIB)
    info = msgspec.structs.replace(info, activation_bytes=GIB // 2, graph_bytes=GIB, image_bytes=GIB // 2)
    measured = needs(tmp_path).measure(config, info, psutil.Process().pid)
    assert (measured.device, measured.rest, measured.kv) == ("cpu", 5 * GIB + PROCESS_BYTES, GIB)
    again = needs(tmp_path).find(config, size=100 * GIB)
    assert again == measured
    assert not needs(tmp_path).find(EngineConfig(name="m", source="org/away", context=5), size=GIB).is_measured
    # A process that takes more than its parts is believed.
    small = engine_info(device="cpu", weights_bytes=0, kv_bytes=0)
    taken = psutil.Process().memory_info().rss
    grown = needs(tmp_path).measure(engine_config(), small, psutil.Process().pid).rest
    assert grown >= min(taken, PROCESS_BYTES) and grown >= PROCESS_BYTES


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 5}', "\xff"])
def test_a_broken_record_is_measured_again(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cache" / "needs.json"
    path.parent.mkdir()
    path.write_text(content, encoding="latin-1")
    config = EngineConfig(name="m", source="org/away")
    assert not needs(tmp_path).find(config).is_measured
    needs(tmp_path).measure(config, engine_info(device="cpu"), None)
    assert needs(tmp_path).find(config).is_measured


def test_a_cache_that_cannot_be_written_costs_only_the_memory_of_it(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert needs(tmp_path).measure(EngineConfig(name="m", source="org/away"), engine_info(device="cpu"), None).rest


def test_an_automatic_cache_leaves_some_of_what_is_free(tmp_path: Path) -> None:
    automatic = EngineConfig(name="m", source="org/away", device="cpu")
    found = needs(tmp_path, "80GiB").find(automatic, size=GIB)
    assert needs(tmp_path).kv_limit(automatic, found, found.rest + 50 * GIB) == 20 * GIB
    assert needs(tmp_path).kv_limit(automatic, found, found.num_bytes) == found.kv == 10 * GIB
    given = EngineConfig(name="m", source="org/away", device="cpu", memory="1GiB")
    assert needs(tmp_path).kv_limit(given, found, 50 * GIB) == 0
    on_gpu = EngineConfig(name="m", source="org/away")
    found = needs(tmp_path).find(on_gpu, size=GIB)
    assert needs(tmp_path).kv_limit(on_gpu, found, found.rest + 30 * GIB) == 30 * GIB


def test_a_control_group_bounds_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    assert devices.cpu_memory().total == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text("max\n")
    assert devices.cpu_memory().total == psutil.virtual_memory().total
    (tmp_path / "memory.max").write_text(f"{100 * 2**20}\n")
    (tmp_path / "memory.current").write_text(f"{70 * 2**20}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {10 * 2**20}\n")
    assert devices.cpu_memory() == DeviceMemory(100 * 2**20, 40 * 2**20)


def test_gpus_are_those_that_this_process_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '1, 200, 150'\necho '0, 100, 50'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    mib = 2**20
    found = devices.find_devices()
    assert found["cuda:0"] == DeviceMemory(100 * mib, 50 * mib) and found["cuda:1"].total == 200 * mib
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert devices.find_devices()["cuda:0"].total == 200 * mib
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert list(devices.find_devices()) == ["cpu"]
    tool.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert devices.gpu_memories() == []
