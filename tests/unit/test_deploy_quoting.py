# SPDX-License-Identifier: Apache-2.0
"""An untrusted plan cannot create a file outside the output, or insert a line into a unit."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import yaml
from checkpoints import llama, llama_config, write_checkpoint

from zpptool.config.plan import make_plan
from zpptool.deploy.compose import COMPOSE_FILE, compose_files
from zpptool.deploy.deployment import Deployment, check_deployment
from zpptool.deploy.kubernetes.manifests import kubernetes_files
from zpptool.deploy.output import write_directory
from zpptool.deploy.systemd import systemd_files
from zpptool.errors import ExitCode, ZppError

HUB = "hf://org/name@0123abcd"
ROOT_LINE = "ExecStartPre=+/bin/touch /pwned"
WRITERS = [kubernetes_files, compose_files, systemd_files]


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    model = write_checkpoint(tmp_path_factory.mktemp("deploy") / "model", llama(layers=6), llama_config(layers=6))
    plan = make_plan(model, num_stages=3, base_port=15550, api_port=8000, hosts=["a", "b", "c"])
    return Deployment(plan=plan, name="zpp", image="zpptool:test", source=HUB)


def on_host(deployment: Deployment, host: str) -> Deployment:
    places = [msgspec.structs.replace(place, host=host) for place in deployment.plan.stages[1:]]
    return replace(
        deployment, plan=msgspec.structs.replace(deployment.plan, stages=(deployment.plan.stages[0], *places))
    )


@pytest.mark.parametrize(
    "host", ["../../x", "/etc", "..", ".", "", "a/b", "a\nb", "a\0b", "a b", "fe80::1%../../x", "-a", "x" * 300]
)
def test_an_invalid_host_is_refused(deployment: Deployment, host: str) -> None:
    with pytest.raises(ZppError, match="which is not a host name") as refused:
        check_deployment(on_host(deployment, host))
    assert refused.value.exit_code == ExitCode.INVALID


@pytest.mark.parametrize("host", ["../../x", "/etc", "..", ".", "a\nb", "a\0b", "fe80::1%../../x"])
def test_an_unchecked_host_creates_no_file_outside(deployment: Deployment, tmp_path: Path, host: str) -> None:
    with pytest.raises(ZppError) as refused:
        write_directory(systemd_files(on_host(deployment, host)), tmp_path / "out")
    assert refused.value.exit_code == ExitCode.INVALID
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\0b", "a\nb"])
def test_no_file_is_written_outside_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(ZppError, match="outside"):
        write_directory({"fine": "", name: ""}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["a", "node-1.example.org", "10.0.0.3", "fe80::1", "fe80::1%eth0"])
def test_a_valid_host_is_accepted(deployment: Deployment, host: str) -> None:
    check_deployment(on_host(deployment, host))


@pytest.mark.parametrize("link", ["tcp://a/b:15551", "tcp://a:1\n5551", "tcp://a:0", "http://a:15551", "", "tcp://:1"])
def test_an_invalid_link_is_refused(deployment: Deployment, link: str) -> None:
    places = list(deployment.plan.stages)
    places[1] = msgspec.structs.replace(places[1], bind=link)
    places[2] = msgspec.structs.replace(places[2], connect=link)
    with pytest.raises(ZppError, match="neither tcp") as refused:
        check_deployment(replace(deployment, plan=msgspec.structs.replace(deployment.plan, stages=tuple(places))))
    assert refused.value.exit_code == ExitCode.INVALID


@pytest.mark.parametrize("change", [lambda p, x: {"model": p.model + x}, lambda _p, x: {"dtype": "auto" + x}])
def test_a_line_break_in_a_value_of_the_plan_is_refused(
    deployment: Deployment, change: Callable[..., dict[str, str]]
) -> None:
    broken = msgspec.structs.replace(deployment.plan, **change(deployment.plan, f"\n{ROOT_LINE}"))
    with pytest.raises(ZppError, match="more than one line") as refused:
        check_deployment(replace(deployment, plan=broken))
    assert refused.value.exit_code == ExitCode.INVALID


@pytest.mark.parametrize(
    "more",
    [
        *({"source": source} for source in (f"/m\n{ROOT_LINE}", "hf://org", "hf://a/b\n", "/a/../../etc", "/m\0", "")),
        *({"image": image} for image in ("", "a b", "a\nb", "-v", "a:b:c", "a//b", "${X}", "A/../b", "x" * 5000)),
        *({"program": path} for path in ("zpptool", f"/z\n{ROOT_LINE}", "/a b", "/a/%h", "/$X/z", "/a/../z", "/")),
        {"name": "zpp\n"},
    ],
)
def test_an_invalid_value_is_refused(deployment: Deployment, more: dict[str, str]) -> None:
    with pytest.raises(ZppError) as refused:
        check_deployment(replace(deployment, **more))  # type: ignore[arg-type]
    assert refused.value.exit_code == ExitCode.USAGE
    assert "\n" not in refused.value.message


@pytest.mark.parametrize(
    "image",
    ["zpptool:latest", "registry.example.org:5000/team/zpp_tool:1.0-cuda", "a/b@sha256:" + "0" * 64, "Host/x", "a__b"],
)
def test_a_valid_image_is_accepted(deployment: Deployment, image: str) -> None:
    check_deployment(replace(deployment, image=image))


def test_systemd_units_get_no_line_from_a_value(deployment: Deployment) -> None:
    with pytest.raises(ZppError, match="more than one line"):
        systemd_files(replace(deployment, source=f"/m\n{ROOT_LINE}"))
    layers = [msgspec.structs.replace(deployment.plan.stages[0], layers="0\n-\n2"), *deployment.plan.stages[1:]]
    with pytest.raises(ZppError, match="more than one line"):
        systemd_files(replace(deployment, plan=msgspec.structs.replace(deployment.plan, stages=tuple(layers))))


ODD = ["--chat-template", "$(HOME) $$ ${X} $b %h \\ \" ' ; | `id`", ";", "$$(X)", "\n- x: y", "&a *b", "true", "1e3"]


def test_every_target_passes_engine_arguments_unchanged(deployment: Deployment) -> None:
    odd = replace(deployment, plan=msgspec.structs.replace(deployment.plan, engine_args=tuple(ODD)))
    for text in kubernetes_files(odd).values():
        for item in yaml.safe_load_all(text):
            if item["kind"] == "StatefulSet":
                command = item["spec"]["template"]["spec"]["containers"][0]["command"]
                assert [as_kubernetes_reads(word) for word in command[-len(ODD) :]] == ODD
    service = yaml.safe_load(compose_files(odd)[COMPOSE_FILE])["services"]["zpp-stage-1"]
    assert [word.replace("$$", "$") for word in service["command"][-len(ODD) :]] == ODD
    assert all("${" not in word.replace("$$", "") for word in service["command"])
    (units,) = {text for name, text in systemd_files(odd).items() if name == "a/zpp-stage-0.service"}
    assert not [line for line in units.splitlines() if line and not line.startswith("[") and "=" not in line]


def as_kubernetes_reads(word: str) -> str:
    """Expand variables as third_party/forked/golang/expansion of Kubernetes does, with every variable defined."""
    made, place = "", 0
    while place < len(word):
        if word[place] == "$" and word[place + 1 : place + 2] == "$":
            made, place = made + "$", place + 2
        elif word[place] == "$" and word[place + 1 : place + 2] == "(":
            made, place = made + "EXPANDED", word.index(")", place) + 1
        else:
            made, place = made + word[place], place + 1
    return made


def test_a_directory_with_special_characters_is_quoted(deployment: Deployment, tmp_path: Path) -> None:
    odd = check_deployment(replace(deployment, source='/models/a:b $x %h "q" \\ ;'))
    services = yaml.safe_load(compose_files(odd)[COMPOSE_FILE])["services"]
    (mount,) = [item for item in services["zpp-stage-0-fetch"]["volumes"] if isinstance(item, dict)]
    assert mount == {"type": "bind", "source": odd.source.replace("$", "$$"), "target": "/source", "read_only": True}
    unit = systemd_files(odd)["a/zpp-stage-0.service"]
    (line,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    assert line.endswith(' --model "/models/a:b $$x %%h \\"q\\" \\\\ ;"')
    if shutil.which("systemd-analyze"):
        (tmp_path / "zpp.service").write_text(unit.replace("/opt/zpptool/bin/zpptool", "/bin/true"))
        verify = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "zpp.service")]
        done = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)
        assert str(tmp_path) not in done.stderr


@pytest.mark.timeout(120)
def test_suggested_commands_are_quoted(zpptool, deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "zpp.yaml").write_text(deployment.plan.to_yaml())
    out = tmp_path / "a b;c"
    words = ["deploy", "compose", "--plan", tmp_path / "zpp.yaml", "--model", HUB, "-o", out, "--insecure", "--json"]
    ran = zpptool(*words)
    assert ran.code == 0, ran.err
    assert shlex.split(ran.json["next"][-1]) == ["docker", "compose", "-f", f"{out}/compose.yaml", "up", "-d"]
