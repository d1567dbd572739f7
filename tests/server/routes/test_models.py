"""What /v1/models says of a model is so."""

import dataclasses
import logging
from pathlib import Path

import pytest

from engine.config import EngineConfig
from server.config.sampling_defaults import SamplingDefaults
from server.fleet.capabilities import capabilities
from server.fleet.policy import Residence, Terms
from server.prompt.tokenizer import ChatTokenizer
from server.protocol.model_shapes import ModelListShape
from tests.server import patient
from tests.server.conftest import Load
from tests.server.fakes import Script, engine_config, running_server
from tests.server.texts import needs_shared


def test_capabilities_are_those_of_the_model(smollm2_tokenizer: ChatTokenizer, load_tokenizer: Load) -> None:
    found = capabilities(EngineConfig(name="m", source=""), smollm2_tokenizer)
    assert found["tools"] and not found["reasoning"] and found["input"] == ["text"]
    assert capabilities(EngineConfig(name="m", source=""), smollm2_tokenizer, sees=True)["input"] == ["text", "image"]
    assert {"json_schema", "regex", "grammar"} <= set(found["structured_outputs"])
    other = capabilities(EngineConfig(name="m", source="", constraints="outlines_core"), smollm2_tokenizer)
    assert "grammar" not in other["structured_outputs"] and "regex" in other["structured_outputs"]
    assert not capabilities(EngineConfig(name="m", source=""), load_tokenizer("sentencepiece"))["tools"]


@needs_shared
def test_a_model_that_thinks_is_said_to(shared_tokenizer: Load) -> None:
    r1 = shared_tokenizer("llama3_1/deepseek-ai-DeepSeek-R1-Distill-Llama-8B")
    assert capabilities(EngineConfig(name="m", source=""), r1)["reasoning"]


def test_defaults_are_shown_applied_and_logged(
    smollm2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    terms = {"fake": Terms(defaults=SamplingDefaults(temperature=0.5, top_k=7))}
    script = Script(model_dir=str(smollm2_dir), token_ids=[504])
    with (
        caplog.at_level(logging.INFO, "server.fleet.handle"),
        running_server(monkeypatch, tmp_path, script, terms=terms) as server,
    ):
        listed = patient.get(f"{server.url}/v1/models").content
    model = ModelListShape.model_validate_json(listed).data[0]
    assert model.sampling_defaults is not None and model.generation_config == {}
    assert (model.sampling_defaults.temperature, model.sampling_defaults.top_k) == (0.5, 7)
    lines = [record.getMessage() for record in caplog.records if "sampling defaults" in record.getMessage()]
    assert lines == ["model fake: sampling defaults: temperature 0.5, top_k 7; its generation_config.json names none"]


def test_settings_are_told_before_the_first_load(
    smollm2_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dataclasses.replace(engine_config("later"), context=4096, device="cuda:1")
    models = (engine_config(), given, engine_config("bare"))
    on_demand = Terms(residence=Residence(load="on_demand"))
    terms = {"later": on_demand, "bare": on_demand}
    script = Script(model_dir=str(smollm2_dir), token_ids=[504])
    with running_server(monkeypatch, tmp_path, script, models=models, terms=terms, memory_budget="9GiB") as server:
        listed = ModelListShape.model_validate_json(patient.get(f"{server.url}/v1/models").content).data
    told = {model.id: (model.context_length, model.max_model_len, model.device, model.dtype) for model in listed}
    assert told["later"] == (4096, 4096, "cuda:1", None) and told["bare"] == (None, None, None, None)
