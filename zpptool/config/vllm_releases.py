# SPDX-License-Identifier: Apache-2.0
"""The releases of vLLM that zpptool works with, and what each of them needs. A new release is added here.

Pure data, without any import of vLLM. `scripts/check_vllm_wheel.py OLD NEW` prints what changed from one to another.
"""

from __future__ import annotations

from dataclasses import dataclass

VLLM_VERSION = "0.32.0"
"""The release that the tests run: a CPU build of it can be installed."""


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a release does in its own way.

    Attributes:
        what: what it does.
        where: the module below `zpptool/` that deals with it.
    """

    what: str
    where: str


@dataclass(frozen=True, slots=True)
class Release:
    """A release series.

    Attributes:
        series: `MAJOR.MINOR`.
        was_run: whether the tests have run it; otherwise its source was read only.
        needs: what it needs that others do not.
    """

    series: str
    was_run: bool
    needs: tuple[Need, ...]


RELEASES = (
    Release(
        "0.32",
        was_run=True,
        needs=(
            Need("the KV cache is laid out in one function", "engines/vllm/compat/kv_cache.py"),
            Need("on a CPU, saved artifacts cannot be loaded", "engines/vllm/compat/env_variables.py"),
            Need("on a CPU, an eager V1 stage has no buffers for its input", "engines/vllm/compat/model_runner.py"),
            Need("on a CPU, V1 draws for sequences in mid-prompt, and fails", "engines/vllm/compat/model_runner.py"),
            Need("on a CPU, rows without an adapter get the last one", "engines/vllm/compat/cpu_lora.py"),
        ),
    ),
    Release(
        "0.33",
        was_run=False,
        needs=(
            Need("the KV cache's groups are made before its layout, and passed", "engines/vllm/compat/kv_cache.py"),
            Need(
                "V2 asks for sampled tokens without its drafts, and says whether it expects drafts",
                "engines/vllm/compat/scheduler_tokens.py",
            ),
            Need("set_kv_cache_layout takes the interleave size too", "engines/vllm/codec.py"),
        ),
    ),
)

TESTED = tuple(release.series for release in RELEASES if release.was_run)
"""The release series that zpptool's tests have run."""
READ = tuple(release.series for release in RELEASES if not release.was_run)
"""The release series whose source has every name that zpptool relies on, but that were never run."""


def is_of(version: str, series: tuple[str, ...]) -> bool:
    """Whether a version belongs to one of these release series."""
    return any(version == known or version.startswith(f"{known}.") for known in series)
