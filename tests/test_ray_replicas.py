"""Replicas on Ray Serve, as `deploy/ray_app.py` makes them: streams, affinity, deaths, scaling. `make ray` runs it."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.clocks import PATIENCE
from tests.places import ROOT
from tests.server.fakes import wait_until
from tests.serving import write_models

ray = pytest.importorskip("ray", reason="Ray is not installed: make ray")
serve = pytest.importorskip("ray.serve", reason="ray[serve] is not installed: make ray")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TINY = "random://llama?hidden_size=64&num_hidden_layers=2&vocab_size=300&intermediate_size=128&num_attention_heads=4"
CHAT = "/v1/chat/completions"


def asked(**fields: Any) -> dict[str, Any]:
    """A request whose answer has as many tokens as it asks for."""
    return {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, "max_tokens": 20, **fields}


def servers() -> list[psutil.Process]:
    """Our servers below the replicas of this machine."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "server.commands.cli" in words and "--unix-socket" in words:
            found.append(process)
    return found


class Cluster:
    """A Ray of this machine alone, with an application that can be deployed anew."""

    def __init__(self, models: Path) -> None:
        from deploy.ray_app import app

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._app, self._models = app, models
        ray.init(
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        serve.start(http_options={"host": "127.0.0.1", "port": self.port})

    def deploy(self, replicas: int) -> None:
        """So many replicas, once they answer; those that are too many end behind their streams."""
        options = f"--models {self._models} --memory 64MiB --threads 1 --no-playground"
        serve.run(self._app({"replicas": str(replicas), "options": options, "cpus": "0.5"}), name="headrace")

    def post(self, client: httpx.Client, session: str | None = None, **fields: Any) -> httpx.Response:
        headers = {"x-session-id": session} if session else {}
        return client.post(f"{self.url}{CHAT}", json=asked(**fields), headers=headers, timeout=PATIENCE)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    models = write_models(tmp_path_factory.mktemp("ray"), {"name": "tiny", "source": TINY, "dtype": "float32"})
    os.environ["PYTHONPATH"] = str(ROOT)
    running = Cluster(models)
    try:
        running.deploy(2)
        yield running
    finally:
        serve.shutdown()
        ray.shutdown()
        wait_until(lambda: not servers(), PATIENCE)


def tokens_of(server: psutil.Process) -> float:
    """How many tokens a server has answered."""
    words = server.cmdline()
    path = words[words.index("--unix-socket") + 1]
    with httpx.Client(transport=httpx.HTTPTransport(uds=path), timeout=PATIENCE) as client:
        lines = client.get("http://localhost/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("headrace_answered_completion_tokens_total")]
    return sum(float(line.split()[-1]) for line in found)


def test_whole_answers_streams_and_refusals_come_through_byte_by_byte(cluster: Cluster) -> None:
    with httpx.Client() as client:
        answer = cluster.post(client)
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 20
        assert answer.headers["content-type"] == "application/json" and "x-request-id" in answer.headers
        refused = cluster.post(client, max_token=5)
        assert refused.status_code == 400 and "did you mean max_tokens" in refused.json()["error"]["message"]
        missing = client.get(f"{cluster.url}/v1/models/nope?x=%20y")
        assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
        fields = asked(stream=True, max_tokens=300, seed=1)
        with client.stream("POST", f"{cluster.url}{CHAT}", json=fields, timeout=PATIENCE) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            began, times = time.monotonic(), [time.monotonic() for _ in stream.iter_raw()]
        assert len(times) > 20 and times[0] - began < (times[-1] - began) / 2, "it comes as it is made"


def test_a_session_stays_with_its_replica(cluster: Cluster) -> None:
    with httpx.Client() as client:
        for session in ("one", "two", "three"):
            before = {server.pid: tokens_of(server) for server in servers()}
            for _ in range(4):
                assert cluster.post(client, session).status_code == 200
            grown = [server.pid for server in servers() if tokens_of(server) - before[server.pid] == 80]
            assert len(grown) == 1


def test_a_killed_server_takes_its_replica_with_it_and_both_come_again(cluster: Cluster) -> None:
    first = servers()
    assert len(first) == 2
    first[0].send_signal(signal.SIGKILL)
    failed = 0
    with httpx.Client() as client:
        for number in range(40):
            failed += cluster.post(client, f"session {number}").status_code != 200
            time.sleep(0.05)
        wait_until(lambda: len({server.pid for server in servers()} - {first[0].pid}) == 2, 2 * PATIENCE)
        wait_until(lambda: cluster.post(client).status_code == 200, PATIENCE)
    assert failed < 20, "the other replica answers meanwhile"


def test_scaling_down_lets_streams_end(cluster: Cluster) -> None:
    wait_until(lambda: len(servers()) == 2, PATIENCE)
    ends: list[str] = []

    def stream(number: int) -> None:
        fields = asked(stream=True, max_tokens=2000)
        headers = {"x-session-id": f"session {number}"}
        with httpx.stream("POST", f"{cluster.url}{CHAT}", json=fields, headers=headers, timeout=300) as answer:
            text = "".join(answer.iter_text())
        ends.append(json.loads(text.split("\n\n")[-3].removeprefix("data: "))["choices"][0]["finish_reason"])

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    cluster.deploy(1)
    for thread in threads:
        thread.join(300)
    assert ends == ["length"] * 6
    wait_until(lambda: len(servers()) == 1, 2 * PATIENCE)
