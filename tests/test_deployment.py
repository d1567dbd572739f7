"""Container, compose file and manifests fit the server and each other: routes, options, ports, names, series."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import container_root
from scripts.dockerfile import expanded, parse_dockerfile
from scripts.lock import LOCK, read_lock
from server.commands.cli import build_parser
from server.commands.serve_options import ADMIN_KEY_VARIABLE, KEY_VARIABLE
from server.config.settings import load_models_file
from server.routes import health
from tests.places import ROOT

DOCKERFILE = (ROOT / "Dockerfile.cuda").read_text()
STEPS = parse_dockerfile(DOCKERFILE)
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
KUBERNETES = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
RESOURCES = {
    document["kind"]: document
    for name in KUSTOMIZATION["resources"]
    for document in yaml.safe_load_all((KUBERNETES / name).read_text())
}
POD = RESOURCES["Deployment"]["spec"]["template"]
CONTAINER = POD["spec"]["containers"][0]
ROUTES = {route.path for route in health.router.routes}
PORT = 8000


def last(name: str) -> Any:
    """The last instruction of a kind."""
    return [step for step in STEPS if step.name == name][-1]


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Where a service of the compose file has what, by the place in the container."""
    return {volume.split(":")[1]: volume.split(":")[0] for volume in service["volumes"]}


# ---- compose


def test_the_server_of_the_compose_file_is_told_what_it_knows() -> None:
    server = COMPOSE["services"]["headrace"]
    options = build_parser().parse_args(server["command"])
    assert (options.host, options.port) == ("0.0.0.0", PORT)
    assert options.drain < float(server["stop_grace_period"].rstrip("s"))
    assert server["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    assert KEY_VARIABLE in server["environment"]
    assert (ROOT / server["build"]["dockerfile"]).is_file()
    assert set(server["build"]["args"]) <= {name for step in STEPS if step.name == "ARG" for name in step.pairs}
    assert last("VOLUME").text in mounts(server)
    assert str(Path(last("WORKDIR").text) / "models.yaml") in mounts(server)


def test_what_the_compose_file_mounts_is_there_and_what_it_names_is_declared() -> None:
    for service in COMPOSE["services"].values():
        for source in mounts(service).values():
            assert (ROOT / source).is_file() if source.startswith("./") else source in COMPOSE["volumes"], source
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
        assert set(service.get("depends_on", ())) <= set(COMPOSE["services"])


def test_prometheus_asks_the_server_with_its_key() -> None:
    service = COMPOSE["services"]["prometheus"]
    (file,) = [word.partition("=")[2] for word in service["command"] if word.startswith("--config.file=")]
    (job,) = yaml.safe_load((ROOT / mounts(service)[file]).read_text())["scrape_configs"]
    assert job["metrics_path"] in ROUTES
    assert job["static_configs"] == [{"targets": [f"headrace:{PORT}"]}]
    secret = Path(job["authorization"]["credentials_file"])
    assert secret.parent == Path("/run/secrets") and secret.name in service["secrets"]
    assert COMPOSE["secrets"][secret.name] == {"environment": KEY_VARIABLE}


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    places = mounts(COMPOSE["services"]["grafana"])
    provisioned = {
        kind: yaml.safe_load((ROOT / source).read_text())
        for place, source in places.items()
        for kind in re.findall(r"^/etc/grafana/provisioning/(\w+)/", place)
    }
    (source,) = provisioned["datasources"]["datasources"]
    assert source["type"] == "prometheus" and source["isDefault"]
    assert re.fullmatch(r"http://(\w+):9090", source["url"]) and source["url"][7:-5] in COMPOSE["services"]
    (provider,) = provisioned["dashboards"]["providers"]
    shown = [origin for place, origin in places.items() if Path(place).parent == Path(provider["options"]["path"])]
    assert shown == ["./deploy/grafana-dashboard.json"]  # tests/test_seeing.py holds it to what a server writes


def test_the_dashboard_shows_several_instances_of_one_model() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
    for target in [target for panel in dashboard["panels"] for target in panel["targets"]]:
        query = target["expr"]
        # Matched by fewer labels than tell instances apart, Prometheus refuses the whole query.
        assert "instance" in query or not re.search(r"\bon\s*\(", query), query
        if not query.startswith(("sum", "histogram_quantile")):
            assert "{{instance}}" in target["legendFormat"], "lines of several instances would have one name"


# ---- Kubernetes


@pytest.mark.parametrize("name", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_each_probe_asks_a_route_at_the_port(name: str) -> None:
    asked = CONTAINER[name]["httpGet"]
    assert asked["path"] == ("/livez" if name == "livenessProbe" else "/readyz") and asked["path"] in ROUTES
    assert asked["port"] in {port["name"] for port in CONTAINER["ports"]}


def test_the_container_of_the_pod_is_that_of_the_image() -> None:
    options = build_parser().parse_args(CONTAINER["args"])
    assert (options.host, options.port) == ("0.0.0.0", PORT)
    assert [port["containerPort"] for port in CONTAINER["ports"]] == [PORT] == [int(last("EXPOSE").text)]
    assert options.drain < POD["spec"]["terminationGracePeriodSeconds"]
    user, _, group = last("USER").text.partition(":")
    context = POD["spec"]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (int(user), int(group), int(group))
    assert CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert CONTAINER["image"] in {image["name"] for image in KUSTOMIZATION["images"]}
    paths = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert last("VOLUME").text in paths and str(options.models.parent) in paths
    assert POD["metadata"]["annotations"]["prometheus.io/path"] in ROUTES


def test_names_in_the_manifests_are_declared() -> None:
    volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == set(volumes)
    claim = volumes["data"]["persistentVolumeClaim"]["claimName"]
    assert claim == RESOURCES["PersistentVolumeClaim"]["metadata"]["name"]
    (maps,), (secrets,) = KUSTOMIZATION["configMapGenerator"], KUSTOMIZATION["secretGenerator"]
    assert volumes["models"]["configMap"]["name"] == maps["name"]
    assert CONTAINER["envFrom"] == [{"secretRef": {"name": secrets["name"]}}]
    labels = POD["metadata"]["labels"]
    assert RESOURCES["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert RESOURCES["Service"]["spec"]["selector"] == labels
    (port,) = RESOURCES["Service"]["spec"]["ports"]
    assert port["targetPort"] in {one["name"] for one in CONTAINER["ports"]}
    assert RESOURCES["Namespace"]["metadata"]["name"] == KUSTOMIZATION["namespace"]
    assert {path.name for path in KUBERNETES.iterdir() if path.name != "keys.env"} == {
        "kustomization.yaml", "keys.env.example", *KUSTOMIZATION["resources"], *maps["files"]
    }  # fmt: skip


def test_the_models_and_keys_of_the_cluster_are_read() -> None:
    (models,) = KUSTOMIZATION["configMapGenerator"][0]["files"]
    assert load_models_file(KUBERNETES / models).models
    assert Path(build_parser().parse_args(CONTAINER["args"]).models).name == models
    names = re.findall(r"^(\w+)=$", (KUBERNETES / "keys.env.example").read_text(), re.MULTILINE)
    assert {KEY_VARIABLE, ADMIN_KEY_VARIABLE} <= set(names)
    assert f"{(KUBERNETES / 'keys.env').relative_to(ROOT)}\n" in (ROOT / ".gitignore").read_text()


# ---- the steps of the Dockerfile, played without Docker


def test_a_dockerfile_is_read_in_instructions() -> None:
    text = '# a\nFROM x AS y\nRUN a \\\n    # of b\n    && b\nCOPY --from=y /a ./b\nENV A=1 \\\n    B="$A c"\n'
    first, run, copy, env = parse_dockerfile(text + 'HEALTHCHECK --interval=1s CMD ["a", "b"]\n')[:4]
    assert (first.words, run.text, copy.options, copy.words) == (
        ["x", "AS", "y"],
        "a && b",
        {"from": "y"},
        ["/a", "./b"],
    )
    assert env.pairs == {"A": "1", "B": "$A c"} and expanded("${A}-$B$C", {"A": "1", "B": "2"}) == "1-2"
    assert last("HEALTHCHECK").command[0] == "python3"
    with pytest.raises(ValueError, match="FLY"):
        parse_dockerfile("FLY away\n")


def test_a_build_for_the_cpu_leaves_out_cuda_alone(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    wheel = tmp_path / "torch-9-py3-none-any.whl"
    wheel.write_bytes(b"")
    (tmp_path / "lock.txt").write_text(container_root.without_cuda(container_root.Stage(tmp_path), wheel))
    text = (tmp_path / "lock.txt").read_text()
    left_out = set(read_lock()) - set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))
    assert left_out == {name for name in read_lock() if name.startswith(("nvidia-", "cuda-", "triton", "torch"))}
    assert f"/tmp/{wheel.name} --hash=sha256:e3b0c442" in text and (tmp_path / "tmp" / wheel.name).is_file()
    assert LOCK.is_file()
