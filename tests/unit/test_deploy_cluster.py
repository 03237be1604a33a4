# SPDX-License-Identifier: Apache-2.0
"""Settings of a cluster: a file of values in manifests, a LeaderWorkerSet and a chart, all held against schemas."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from checkpoints import llama, llama_config, write_checkpoint
from manifests import check, objects, of_kind

from zpptool.config.engine_kind import Engine
from zpptool.config.plan import make_plan
from zpptool.deploy.cluster_settings import DEFAULTS, read_values
from zpptool.deploy.deployment import Deployment, check_deployment
from zpptool.deploy.kubernetes.helm import POD_VALUES, helm_files
from zpptool.deploy.kubernetes.leader_worker_set import LWS_FILE, lws_files
from zpptool.deploy.kubernetes.manifests import kubernetes_files
from zpptool.errors import ZppError

VALUES = """
nodeSelector: {pool: gpu}
affinity:
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - {topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app.kubernetes.io/instance: zpp}}}
tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
topologySpreadConstraints: [{maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: ScheduleAnyway}]
priorityClassName: serving
runtimeClassName: nvidia
imagePullSecrets: [registry]
storageClassName: fast
shmSize: 8Gi
gpuResource: amd.com/gpu
front: {apiKeySecret: zpp-api, hosts: [llm.example.com]}
monitor: {kind: PodMonitor, namespace: monitoring}
gatewayNamespace: gateway
inferencePool: {endpointPicker: zpp-epp}
"""
OWN_STAGE = "stages: [{stage: 1, nodeSelector: {pool: big}, storage: 80Gi, gpuResource: nvidia.com/mig-3g.40gb}]\n"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    model = tmp_path_factory.mktemp("deploy") / "model"
    write_checkpoint(model, llama(layers=6), llama_config(layers=6))
    plan = make_plan(
        model, num_stages=3, base_port=15550, api_port=8000, hosts=["a", "b", "c"], engine=Engine.VLLM,
        engine_args=["--chat-template", "{{ x }} $b"],
    )  # fmt: skip
    return Deployment(plan=plan, name="zpp", image="zpptool:test", source="hf://org/name@0123abcd")


def with_values(deployment: Deployment, tmp_path: Path, text: str) -> Deployment:
    (tmp_path / "values.yaml").write_text(text)
    return check_deployment(replace(deployment, settings=read_values(tmp_path / "values.yaml")))


def test_every_setting_reaches_the_pods_and_the_schemas_accept_it(deployment: Deployment, tmp_path: Path) -> None:
    files = kubernetes_files(with_values(deployment, tmp_path, VALUES + OWN_STAGE))
    found = objects(*files.values())
    for item in found:
        check(item)
    sets = of_kind(found, "StatefulSet")
    pods = [item["spec"]["template"]["spec"] for item in sets]
    given = yaml.safe_load(VALUES)
    for pod in pods:
        for key in ("affinity", "tolerations", "priorityClassName", "runtimeClassName"):
            assert pod[key] == given[key]
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in pod["volumes"]
        (spread,) = pod["topologySpreadConstraints"]
        assert spread["labelSelector"]["matchLabels"]["app.kubernetes.io/instance"] == "zpp"
    assert [pod["nodeSelector"]["pool"] for pod in pods] == ["gpu", "big", "gpu"]
    resources = [next(iter(pod["containers"][0]["resources"]["limits"].keys() - {"memory"})) for pod in pods]
    assert resources == ["amd.com/gpu", "nvidia.com/mig-3g.40gb", "amd.com/gpu"]
    claims = [item["spec"]["volumeClaimTemplates"][0]["spec"] for item in sets]
    assert {claim["storageClassName"] for claim in claims} == {"fast"}
    assert claims[1]["resources"]["requests"]["storage"] == "80Gi"
    assert set(files) >= {"monitoring/podmonitor.yaml", "gateway/inferencepool.yaml", "front.yaml"}
    assert set(yaml.safe_load(files["kustomization.yaml"])["resources"]) == {
        "stage-0.yaml", "stage-1.yaml", "stage-2.yaml", "pipeline.yaml", "front.yaml",
    }  # fmt: skip


def test_the_front_takes_its_key_from_a_secret_and_asks_the_api(deployment: Deployment, tmp_path: Path) -> None:
    found = objects(kubernetes_files(with_values(deployment, tmp_path, VALUES))["front.yaml"])
    (workload,) = of_kind(found, "Deployment")
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    command = container["command"]
    assert command[command.index("--upstream") + 1] == "http://zpp:8000"
    assert "llm.example.com" in command
    key = next(item for item in container["env"] if item["name"] == "ZPP_API_KEY")
    assert key["valueFrom"]["secretKeyRef"] == {"name": "zpp-api", "key": "api-key"}
    (service,) = of_kind(found, "Service")
    assert service["spec"]["selector"].items() <= workload["spec"]["template"]["metadata"]["labels"].items()


def callers(policy: dict[str, Any], port: int) -> list[dict[str, Any]]:
    (rule,) = [rule for rule in policy["spec"]["ingress"] if rule["ports"][0]["port"] == port]
    return rule["from"]


def test_monitor_and_gateway_are_let_in_where_they_have_to_be(deployment: Deployment, tmp_path: Path) -> None:
    def head_callers(text: str) -> list[dict[str, Any]]:
        files = kubernetes_files(with_values(deployment, tmp_path, text))
        return callers(of_kind(objects(files["stage-0.yaml"]), "NetworkPolicy")[0], 8000)

    def namespace(name: str) -> dict[str, Any]:
        return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}

    assert head_callers("") == [{"podSelector": {}}]
    assert head_callers("gatewayNamespace: g\nmonitor: {namespace: m}") == [
        {"podSelector": {}}, namespace("g"), namespace("m"),
    ]  # fmt: skip
    with_front = head_callers("front: {apiKeySecret: k}\ngatewayNamespace: g\nmonitor: {namespace: m}")
    assert with_front[0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "front"
    assert with_front[1:] == [namespace("m")]
    (policy,) = of_kind(
        objects(kubernetes_files(with_values(deployment, tmp_path, VALUES))["front.yaml"]), "NetworkPolicy"
    )
    assert callers(policy, 8080) == [{"podSelector": {}}, namespace("gateway"), namespace("monitoring")]


def test_a_shared_cache_replaces_the_volumes_of_the_stages(deployment: Deployment, tmp_path: Path) -> None:
    found = objects(*kubernetes_files(with_values(deployment, tmp_path, "modelCache: models")).values())
    for item in of_kind(found, "StatefulSet"):
        check(item)
        assert item["spec"]["volumeClaimTemplates"] == []
        volumes = item["spec"]["template"]["spec"]["volumes"]
        assert {"name": "model", "persistentVolumeClaim": {"claimName": "models"}} in volumes


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nodeSelectors: {a: b}", "nodeSelectors"),
        ("stages: [{stage: 1, imagePullSecret: x}]", "imagePullSecret"),
        ("tolerations: [{keys: x}]", "keys"),
        ("shmSize: 8", "str"),
        ("shmSize: 8GB", "8GB"),
        ("stages: [{stage: 3}]", "there is no stage 3"),
        ("stages: [{stage: 1}, {stage: 1}]", "stage 1 has two entries"),
        ("monitor: {kind: Prometheus}", "Prometheus"),
        ("storageClassName: 'a b'", "storageClassName"),
        ("gpuResource: '{{x}}'", "gpuResource"),
        ("topologySpreadConstraints: [{maxSkew: 1, topologyKey: z, whenUnsatisfiable: Maybe}]", "Maybe"),
    ],
)
def test_a_value_that_cannot_be_is_refused(text: str, named: str, deployment: Deployment, tmp_path: Path) -> None:
    with pytest.raises(ZppError, match=re.escape(named)) as refused:
        with_values(deployment, tmp_path, text)
    assert refused.value.exit_code == 2


def test_one_leader_worker_set_runs_every_stage_by_its_index(deployment: Deployment, tmp_path: Path) -> None:
    files = lws_files(with_values(deployment, tmp_path, VALUES))
    found = objects(files[LWS_FILE])
    for item in found:
        check(item)
    (group,) = of_kind(found, "LeaderWorkerSet")
    template = group["spec"]["leaderWorkerTemplate"]
    assert (template["size"], template["restartPolicy"], group["spec"]["startupPolicy"]) == (3, "None", "LeaderCreated")
    leader = template["leaderTemplate"]["spec"]["containers"][0]["command"]
    assert leader[leader.index("--prev-stage-addr") + 1] == "zpp-0-2.zpp:15550"
    pod = template["workerTemplate"]["spec"]
    secrets = yaml.safe_load(files["kustomization.yaml"])["secretGenerator"]
    assert secrets[1]["files"] == ["keys/stage_1.keys", "keys/stage_2.keys"]
    for stage, before in ((1, "zpp-0.zpp:15550"), (2, "zpp-0-1.zpp:15550")):
        ran = in_shell(pod["containers"][0]["command"], str(stage), tmp_path)
        assert ran[0] == "run-stage"
        assert ran[ran.index("--local-bind-port") + 1] == "15550"
        assert ran[1].endswith(f"/stage_{stage}")
        assert ran[ran.index("--prev-stage-service-addr") + 1] == before
        assert ran[-1] == "{{ x }} $b"
        fetched = in_shell(pod["initContainers"][0]["command"], str(stage), tmp_path)
        assert fetched[fetched.index("--stage") + 1] == str(stage)


def in_shell(command: list[str], stage: str, tmp_path: Path) -> list[str]:
    """What zpptool is called with by a container's command in the pod of that index."""
    program = tmp_path / "bin/zpptool"
    program.parent.mkdir(exist_ok=True)
    program.write_text("#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done\n")
    program.chmod(0o755)
    resolved = [word.replace("$$", "$") for word in command]  # as Kubernetes does
    done = subprocess.run(
        resolved, env={"PATH": f"{program.parent}:/usr/bin:/bin", "STAGE": stage}, capture_output=True, text=True,
        timeout=10, check=True,
    )  # fmt: skip
    return done.stdout.split("\0")[:-1]


def test_a_group_refuses_what_its_one_template_cannot_express(deployment: Deployment, tmp_path: Path) -> None:
    with pytest.raises(ZppError, match="share one template"):
        lws_files(with_values(deployment, tmp_path, "stages: [{stage: 2, shmSize: 4Gi}]"))


def rendered(template: str, values: dict[str, Any]) -> str:
    """A template of the chart with its values, as Helm renders its expressions."""

    def value(found: re.Match[str]) -> str:
        at: Any = values
        for key in found[1].split("."):
            at = at[key]
        return json.dumps(at)

    text = re.sub(r"\{\{ \.Values\.([A-Za-z0-9.]+) \| toJson \}\}", value, template)
    text = re.sub(r"\{\{ (?:if \.Values\.[a-z.]+|end) \}\}\n", "", text)
    return text.replace('{{ "{{" }}', "{{")


def without_null(item: Any) -> Any:
    """An object without the keys that are null, which Kubernetes takes as not given."""
    if isinstance(item, dict):
        return {key: without_null(value) for key, value in item.items() if value is not None}
    return [without_null(each) for each in item] if isinstance(item, list) else item


@pytest.mark.parametrize("text", ["", VALUES + OWN_STAGE, "modelCache: models"])
def test_the_chart_gives_the_manifests_with_its_own_values(text: str, deployment: Deployment, tmp_path: Path) -> None:
    given = with_values(deployment, tmp_path, text)
    chart, plain = helm_files(given), kubernetes_files(given)
    values = yaml.safe_load(chart["values.yaml"])
    manifests = {name.rpartition("/")[2]: content for name, content in plain.items() if name != "kustomization.yaml"}
    templates = {name.removeprefix("templates/"): content for name, content in chart.items() if "/" in name}
    assert set(templates) == set(manifests)
    for name, template in templates.items():
        assert without_null(objects(rendered(template, values))) == objects(manifests[name])
    assert set(values["stages"]) == {"stage0", "stage1", "stage2"}
    assert set(POD_VALUES) | {"image", "resources"} <= set(values["stages"]["stage1"])


def test_the_chart_changes_with_its_values(deployment: Deployment) -> None:
    chart = helm_files(deployment)
    values = yaml.safe_load(chart["values.yaml"])
    values["stages"]["stage1"] |= {"image": "registry/other:1", "nodeSelector": {"pool": "big"}}
    (workload,) = of_kind(objects(rendered(chart["templates/stage-1.yaml"], values)), "StatefulSet")
    pod = workload["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "big"}
    assert {each["image"] for each in (*pod["containers"], *pod["initContainers"])} == {"registry/other:1"}


def test_helm_accepts_the_chart(deployment: Deployment, tmp_path: Path) -> None:
    if shutil.which("helm") is None:
        pytest.skip("no helm: the chart's templates were not rendered by Helm itself")
    for name, content in helm_files(deployment).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    for verb in (["lint", "--strict"], ["template", "zpp"]):
        done = subprocess.run(["helm", *verb, tmp_path], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_kubectl_builds_the_kustomizations(deployment: Deployment, tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no kubectl: the kustomizations were not built")
    for made in (kubernetes_files(deployment), lws_files(deployment)):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        for name, content in made.items():
            (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "out" / name).write_text(content)
        (tmp_path / "out/keys").mkdir()
        for stage in range(3):
            (tmp_path / f"out/keys/stage_{stage}.keys").write_text("key\n")
        done = subprocess.run(
            ["kubectl", "kustomize", tmp_path / "out"], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        for item in objects(done.stdout):
            check(item)


def test_the_schemas_of_custom_resources_refuse_an_unknown_key(deployment: Deployment) -> None:
    (group,) = of_kind(objects(lws_files(deployment)[LWS_FILE]), "LeaderWorkerSet")
    group["spec"]["leaderWorkerTemplate"]["restartPolicies"] = "None"
    with pytest.raises(jsonschema.ValidationError, match="restartPolicies"):
        check(group)


def test_without_values_nothing_is_set(deployment: Deployment) -> None:
    assert deployment.settings is DEFAULTS
    pod = of_kind(objects(*kubernetes_files(deployment).values()), "StatefulSet")[0]["spec"]["template"]["spec"]
    assert not set(POD_VALUES) & set(pod)
