"""What in deploy/ only Docker and Kubernetes run, read: names, paths and times are Hubbub's, and known traps are avoided.

Each trap has its reason beside it. Nothing here has been seen by a Docker or a Kubernetes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from hubbub import __version__
from hubbub.settings import Settings
from tests.support import settings_for

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
KUBECTL = shutil.which("kubectl")

Document = dict[str, Any]


def documents(name: str) -> list[Document]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def of_kind(name: str, kind: str) -> Document:
    """The one document of this kind in a file."""
    (found,) = [each for each in documents(name) if each["kind"] == kind]
    return found


def stop_seconds(settings: Settings) -> float:
    """Within how long a server has ended after its SIGTERM (docs/operations.md)."""
    return settings.drain_seconds + settings.close_timeout + 2 + settings.store_timeout


def known(name: str) -> bool:
    return name.startswith("AWS_") or name.removeprefix("HUBBUB_").lower() in Settings.model_fields


# -- Compose -------------------------------------------------------------------------------------------------------


@pytest.fixture
def compose() -> Document:
    (found,) = documents("compose.yaml")
    return found


def nodes_of(compose: Document) -> dict[str, Document]:
    return {name: service for name, service in compose["services"].items() if name.startswith("node-")}


def test_compose_names_what_there_is(compose: Document) -> None:
    nodes = nodes_of(compose)
    assert len(nodes) == 3
    for node in nodes.values():
        assert all(known(name) for name in node["environment"])
        assert float(node["stop_grace_period"].removesuffix("s")) > stop_seconds(
            settings_for(drain_seconds=10, close_timeout=5)
        )
        assert node["environment"]["HUBBUB_VALKEY_URL"].startswith("valkey://hubbub:")
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith("./") else source in compose["volumes"]


def test_the_nodes_of_compose_believe_nginx_and_nginx_finds_them(compose: Document) -> None:
    trusted = compose["services"]["nginx"]["networks"]["inside"]["ipv4_address"]
    nodes = nodes_of(compose)
    for node in nodes.values():
        assert node["command"][-2:] == ["--forwarded-allow-ips", trusted]
    # by address: nginx looks names up once, and a node that Compose makes anew would have another address
    upstreams = re.findall(r"^ +server (\S+):8000", (DEPLOY / "nginx.conf").read_text(), re.MULTILINE)
    assert upstreams == [node["networks"]["inside"]["ipv4_address"] for node in nodes.values()]


def test_docker_gives_nobody_an_address_that_is_anothers(compose: Document) -> None:
    """Who has none gets the lowest free one of ip_range (without it, of the subnet), and may be started earlier."""
    (network,) = compose["networks"]["inside"]["ipam"]["config"]
    subnet, given_out = ip_network(network["subnet"]), ip_network(network["ip_range"])
    fixed = [
        ip_address(service["networks"]["inside"]["ipv4_address"])
        for service in compose["services"].values()
        if isinstance(service["networks"], dict)
    ]
    fixed.append(ip_address(network["gateway"]))
    assert len(fixed) == len(set(fixed)) == 5
    assert len(compose["services"]) > 4  # the others are given theirs
    for each in fixed:
        assert each in subnet, each
        assert each not in given_out, each


def test_the_image_has_what_it_needs_and_is_given_what_it_copies() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = {
        name for line in lines if line.startswith("COPY ") and "--from" not in line for name in line.split()[1:-1]
    }
    given = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert copied == given  # all else is left out: .git, .venv, deploy/.env with its secrets
    for name in copied:
        assert (ROOT / name).exists(), name
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (installed,) = re.findall(r"pip install .*'\.\[([\w,]+)\]'", "\n".join(lines))
    # compose.yaml and kubernetes/ use an engine, PostgreSQL and a bucket; `--workers` alone needs an engine inside
    assert set(installed.split(",")) == {"workers", "postgres", "s3"} <= set(extras)


# -- Kubernetes ----------------------------------------------------------------------------------------------------


def pods() -> Iterator[tuple[str, Document]]:
    """The template of each kind of pod."""
    for path in sorted(KUBERNETES.glob("*.yaml")):
        for each in documents(f"kubernetes/{path.name}"):
            if template := each.get("spec", {}).get("template"):
                yield path.name, template


def containers() -> Iterator[tuple[str, Document, Document]]:
    """Each container with its pod's spec."""
    for name, template in pods():
        spec = template["spec"]
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            yield f"{name}: {container['name']}", spec, container


def test_the_manifests_name_what_there_is() -> None:
    hubbub = {each["kind"]: each for each in documents("kubernetes/hubbub.yaml")}
    assert set(hubbub) == {
        "ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy",
    }  # fmt: skip
    configured = hubbub["ConfigMap"]["data"]
    assert all(known(name) for name in configured)
    pod = hubbub["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    settings = settings_for(drain_seconds=configured["HUBBUB_DRAIN_SECONDS"], close_timeout=5)
    assert pod["terminationGracePeriodSeconds"] > pause + stop_seconds(settings)
    labels = hubbub["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert hubbub["Service"]["spec"]["selector"] == labels
    assert hubbub["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    secret = re.findall(r"--from-literal=(\w+)=", (KUBERNETES / "hubbub.yaml").read_text())
    assert all(known(name) for name in secret)


def test_the_number_of_pods_is_the_autoscalers_alone() -> None:
    """`replicas` beside it is set again by each `apply`: a new version would end all pods beyond that number at once."""
    deployment, scaler = (of_kind("kubernetes/hubbub.yaml", kind) for kind in ("Deployment", "HorizontalPodAutoscaler"))
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]
    assert scaler["spec"]["minReplicas"] >= 2


def test_services_put_no_settings_into_the_pods() -> None:
    """A Service `hubbub` becomes HUBBUB_PORT, HUBBUB_SERVICE_HOST, … in each pod, which look like settings of ours."""
    assert of_kind("kubernetes/hubbub.yaml", "Service")["metadata"]["name"] == "hubbub"
    for name, template in pods():
        assert template["spec"]["enableServiceLinks"] is False, name


def test_a_version_is_rolled_out_since_its_tag_is_another() -> None:
    (build,) = documents("kubernetes/kustomization.yaml")
    (image,) = build["images"]
    ours = {each["image"] for name, _, each in containers() if name.startswith("hubbub.yaml")}
    assert ours == {f"{image['name']}:{__version__}"}
    assert image["newTag"] == __version__
    for name, _, each in containers():
        assert ":" in each["image"], name
        assert not each["image"].endswith(":latest"), name
    for resource in build["resources"]:
        assert (KUBERNETES / resource).exists(), resource


@pytest.mark.skipif(KUBECTL is None, reason="there is no kubectl to build them with")
def test_the_manifests_can_be_built_together() -> None:
    assert KUBECTL is not None
    built = subprocess.run([KUBECTL, "kustomize", KUBERNETES], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    found = list(yaml.safe_load_all(built.stdout))
    assert {"Deployment", "StatefulSet", "HTTPRoute", "NetworkPolicy"} <= {each["kind"] for each in found}
    (deployment,) = [each for each in found if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    images = {each["image"] for each in [*pod["initContainers"], *pod["containers"]]}
    assert images == {f"registry.example/hubbub:{__version__}"}


def test_containers_may_do_little() -> None:
    for name, spec, container in containers():
        assert spec["automountServiceAccountToken"] is False, name  # none of them asks Kubernetes anything
        pod, own = spec["securityContext"], container["securityContext"]
        assert pod["runAsNonRoot"] is True, name
        assert pod["runAsUser"] > 0, name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert own["allowPrivilegeEscalation"] is False, name
        assert own["readOnlyRootFilesystem"] is True, name
        assert own["capabilities"] == {"drop": ["ALL"]}, name


def test_what_is_written_has_a_place() -> None:
    """The root is read-only: an app's UploadFile wants /tmp, the data directory and Valkey's log are volumes."""
    configured = of_kind("kubernetes/hubbub.yaml", "ConfigMap")["data"]
    for name, spec, container in containers():
        volumes = {each["name"]: each for each in spec.get("volumes", [])}
        writable = {
            each["mountPath"]
            for each in container["volumeMounts"]
            if each["name"] == "data" or "emptyDir" in volumes[each["name"]]
        }
        if name.startswith("hubbub.yaml"):
            assert writable == {configured["HUBBUB_DATA_DIR"], "/tmp"}, name
        else:
            assert container["command"][-2:] == ["--dir", "/data"], name
            assert writable == {"/data"}, name


def test_probes_ask_what_they_should() -> None:
    (container,) = of_kind("kubernetes/hubbub.yaml", "Deployment")["spec"]["template"]["spec"]["containers"]
    # a restart brings no engine back, and ends all sessions: only the loop decides about it
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert container["startupProbe"]["httpGet"]["path"] == "/health/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"

    (valkey,) = of_kind("kubernetes/valkey.yaml", "StatefulSet")["spec"]["template"]["spec"]["containers"]
    live, ready = (valkey[probe]["exec"]["command"][-1] for probe in ("livenessProbe", "readinessProbe"))
    users = (DEPLOY / "valkey-users.acl").read_text()
    for command in (live, ready):  # tcpSocket: the kernel accepts for a process that stands still
        (user,) = re.findall(r"^valkey-cli .*--user (\w+) .*\bping \|", command)
        assert f"user {user} on nopass" in users  # no password in a command line
    # reading a large file takes longer than a probe's patience, and would begin again with each restart
    assert "LOADING" in live
    assert "LOADING" not in ready


def test_only_those_get_to_the_pods_who_have_to() -> None:
    """Whoever writes to the engine speaks for every user; whoever reaches a node from 10/8 says whose address it is."""
    for name in ("hubbub", "valkey"):
        policy = of_kind(f"kubernetes/{name}.yaml", "NetworkPolicy")["spec"]
        ((_, template),) = [(file, each) for file, each in pods() if file == f"{name}.yaml"]
        assert policy["podSelector"]["matchLabels"] == template["metadata"]["labels"]
        (container,) = template["spec"]["containers"]
        (rule,) = policy["ingress"]
        assert [each["port"] for each in rule["ports"]] == [each["name"] for each in container["ports"]]
        assert "Ingress" in policy["policyTypes"]
        for peer in rule["from"]:
            assert peer["podSelector"] if name == "valkey" else peer["namespaceSelector"]  # an empty one is everybody
    engine = of_kind("kubernetes/valkey.yaml", "NetworkPolicy")["spec"]
    ((_, node),) = [(file, each) for file, each in pods() if file == "hubbub.yaml"]
    assert engine["ingress"][0]["from"] == [{"podSelector": {"matchLabels": node["metadata"]["labels"]}}]
    assert "Egress" in engine["policyTypes"]
    assert not engine.get("egress")


def test_ways_in_lead_to_the_service_and_do_not_cut_sockets() -> None:
    service = of_kind("kubernetes/hubbub.yaml", "Service")
    (port,) = service["spec"]["ports"]
    (route,) = documents("kubernetes/gateway.yaml")
    for rule in route["spec"]["rules"]:
        assert rule["backendRefs"] == [{"name": service["metadata"]["name"], "port": port["port"]}]
    sockets, others = route["spec"]["rules"]
    assert [each["path"]["value"] for each in sockets["matches"]] == ["/ws"]
    assert sockets["timeouts"] == {"request": "0s"}  # some gateways end what lasts longer than 15 s
    assert [each["path"]["value"] for each in others["matches"]] == ["/"]

    (ingress,) = documents("kubernetes/ingress.yaml")
    backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": service["metadata"]["name"], "port": {"name": port["name"]}}
    said = {name.rpartition("/")[2]: value for name, value in ingress["metadata"]["annotations"].items()}
    for name in ("proxy-read-timeout", "proxy-send-timeout"):
        assert int(said[name]) > settings_for().heartbeat_interval
    assert said["enable-access-log"] == "false"  # its format has the query: tokens


def test_alerts_name_metrics_that_there_are() -> None:
    described = (ROOT / "docs" / "operations.md").read_text()
    rule = of_kind("kubernetes/monitoring.yaml", "PrometheusRule")
    names = {
        name.removesuffix("_bucket")
        for each in rule["spec"]["groups"][0]["rules"]
        for name in re.findall(r"\b(?:hubbub|websocket)_\w+", each["expr"])
    }
    assert len(names) > 3
    for name in names:
        assert f"`{name}`" in described, name
    scaled = of_kind("kubernetes/hubbub.yaml", "HorizontalPodAutoscaler")
    assert f"`{scaled['spec']['metrics'][0]['pods']['metric']['name']}`" in described
