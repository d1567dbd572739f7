"""What probes are told: whether the process lives, and whether requests should be sent to it."""

from pathlib import Path

import pytest

from server.edge.limits import Limits
from tests.server import patient
from tests.server.fakes import Script, running_server, wait_ready, wait_until
from tests.server.routes.test_on_demand import CHAT, MESSAGES


def test_probes_tell_the_process_from_its_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, smollm2_dir: Path
) -> None:
    gate = tmp_path / "gate"
    slow = Script(
        model_dir=str(smollm2_dir), token_ids=[504], holds_load=True, holds={7: 1}, gate=str(gate), context=10**6
    )
    limits = Limits(max_requests=1)
    with running_server(monkeypatch, tmp_path, slow, ready=False, api_keys=("key",), limits=limits) as server:
        wait_until(lambda: server.handle.progress is not None)
        assert patient.get(f"{server.url}/livez").json() == {"status": "live"}
        loading = patient.get(f"{server.url}/readyz")
        assert loading.status_code == 503 and loading.json() == {"status": "loading"} and loading.headers["retry-after"]
        gate.touch()
        wait_ready(server.url)
        assert patient.get(f"{server.url}/readyz").status_code == 200
        gate.unlink()
        body = {"messages": MESSAGES, "stream": True, "max_tokens": 4, "seed": 7}
        headers = {"Authorization": "Bearer key"}
        with patient.stream("POST", server.url + CHAT, json=body, headers=headers) as answer:
            pieces = answer.iter_text()
            next(pieces)
            full = patient.get(f"{server.url}/readyz")
            assert full.status_code == 503 and full.json() == {"status": "full"}
            assert patient.get(f"{server.url}/health").status_code == 200
        wait_until(lambda: patient.get(f"{server.url}/readyz").status_code == 200)
        server.call(server.server.admission.drain)
        assert patient.get(f"{server.url}/readyz").json() == {"status": "draining"}
        assert patient.get(f"{server.url}/livez").status_code == 200
        server.server.admission.draining = False  # it has not been told to end yet
