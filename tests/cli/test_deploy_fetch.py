# SPDX-License-Identifier: Apache-2.0
"""The fetch commands that `zpptool deploy` generates, run as they would be: as user 1000, on a mount point."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from checkpoints import write_checkpoint
from hubserver import COMMIT, Hub, serve_hub

pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    model = write_checkpoint(tmp_path / "model", shards=2)
    with serve_hub({"org/name": model}, tmp_path / "caches") as served:
        yield served


def generated(zpptool, hub: Hub, directory: Path, *ranges: str) -> dict[str, list[str]]:
    """The services of a compose file for a plan, by name: their commands."""
    plan = directory / "zpp.yaml"
    made = zpptool("plan", "org/name", "--ranges", *ranges, "-o", plan, "--force", env=hub.env)
    assert made.code == 0, made.err
    wrote = zpptool("deploy", "compose", "--plan", plan, "-o", directory / "out", "--force")
    assert wrote.code == 0, wrote.err
    services = yaml.safe_load((directory / "out/compose.yaml").read_text())["services"]
    return {name: service["command"] for name, service in services.items()}


def as_user_1000(hub: Hub, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script as user 1000 with a new volume at /mnt that it owns; nothing else can be written but /tmp.

    It may read every file, because Python's installation may be private to root.
    """
    reading = "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
    mounted = "mount -t tmpfs -o uid=1000,gid=1000,mode=755 tmpfs /mnt && exec setpriv --reuid=1000 --regid=1000"
    env = {**os.environ, **hub.env, "HOME": "/tmp", "HF_HOME": "/tmp/no-hf-cache-of-1000", "ZPP_CACHE": ""}
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{mounted} --clear-groups {reading} sh -ec {shlex.quote(script)}"],
        capture_output=True, text=True, timeout=100, env=env, cwd="/", check=False,
    )  # fmt: skip


def line(command: list[str], volume: str = "/models") -> str:
    """A generated command as it would run where its volume is /mnt."""
    words = [word.replace(volume, "/mnt") for word in command]
    return shlex.join([sys.executable, "-m", *words])


def test_a_branch_is_replaced_by_its_commit(zpptool, hub: Hub, tmp_path: Path) -> None:
    plan, words = tmp_path / "zpp.yaml", ("deploy", "kubernetes", "--plan", tmp_path / "zpp.yaml", "--force")
    assert zpptool("plan", "org/name", "--num-stages", 2, "-o", plan, env=hub.env).code == 0
    for named in ("org/name", "hf://org/name@main"):
        hub.forget()
        wrote = zpptool(*words, "-o", tmp_path / "out", "--model", named, env=hub.env)
        assert wrote.code == 0, wrote.err
        text = (tmp_path / "out/stage-1.yaml").read_text()
        assert f"hf://org/name@{COMMIT}" in text
        assert len(hub.requests) == 1
    hub.forget()
    assert zpptool(*words, "-o", tmp_path / "out", "--model", f"hf://org/name@{COMMIT}", env=hub.env).code == 0
    assert hub.requests == []
    unknown = zpptool(*words, "-o", tmp_path / "out", "--model", "hf://org/name@nothing", env=hub.env)
    assert (unknown.code, "nothing" in unknown.err) == (3, True), unknown.err


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, to become user 1000")
def test_the_generated_fetch_heals_itself(zpptool, hub: Hub, tmp_path: Path) -> None:
    before = generated(zpptool, hub, tmp_path, "0-2", "2-4")
    after = generated(zpptool, hub, tmp_path, "0-1", "1-4")
    fetch, run = before["zpp-stage-1-fetch"], before["zpp-stage-1"]
    script = f"""
        {line(fetch)}
        test -f {run[2].replace("/models", "/mnt")}/zpp-stage.json
        HF_ENDPOINT=http://127.0.0.1:9 {line(fetch)}
        {line(after["zpp-stage-1-fetch"])}
        test -f {after["zpp-stage-1"][2].replace("/models", "/mnt")}/zpp-stage.json
        test ! -e {run[2].replace("/models", "/mnt")}
        echo healed
    """
    done = as_user_1000(hub, script)
    assert done.stdout.endswith("healed\n"), done.stderr
    assert f"hf://org/name@{COMMIT}" in fetch, "the branch was resolved when the files were written"
    assert run[2] != after["zpp-stage-1"][2]
