"""What GET /openapi.json says is what the server does: requests made from it, and answers held against it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from server.app import ROUTES
from server.openapi.document import describe_api
from tests.clocks import PATIENCE
from tests.server.fakes import RunningServer, Script, running_server

KEY = "the-key"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    ignored_auth,
]
MALFORMED = {"invalid_type", "invalid_json", "unknown_parameter", "missing_required_parameter"}
"""Codes of what a schema can rule out: a request made by the schema never meets them."""

CONFIG = {
    "generation": {"deterministic": True, "no-shrink": True, "database": "none", "with-security-parameters": False}
}
schema = schemathesis.openapi.from_dict(
    describe_api(ROUTES, version="test", needs_key=True), config=SchemathesisConfig.from_dict(CONFIG)
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Iterator[RunningServer]:
    script = Script(model_dir=str(smollm2_dir), token_ids=[504, 3575], eos_after=3)
    with (
        pytest.MonkeyPatch.context() as patch,
        # Without the pages for a browser: at / there is one, beside a route that takes only what is posted.
        running_server(
            patch, tmp_path_factory.mktemp("conformance"), script, api_keys=(KEY,), playground=False
        ) as running,
    ):
        yield running


@pytest.mark.slow
@pytest.mark.timeout(10 * PATIENCE)
@schema.parametrize()
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_server_does_what_its_description_says(case: Any, server: RunningServer) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = case.call_and_validate(base_url=server.url, headers=headers, checks=CHECKS, timeout=PATIENCE)
    if case.meta.generation.mode.is_positive and answer.status_code == 400:
        error = answer.json()["error"]
        # To JSON Schema 1.0 is an integer. In options it is taken for one, in arrays of token ids it is not.
        is_token = str(error["param"]).startswith(("prompt", "tokens"))
        assert error["code"] not in MALFORMED or is_token, answer.text


def test_the_engine_has_outlived_it(server: RunningServer) -> None:
    assert len(server.events("start")) == 1 and server.handle.supervision.restarts == 0
