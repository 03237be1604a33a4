# SPDX-License-Identifier: Apache-2.0
"""All checks, the most telling first: what is left out for time is at the end. Their times are estimates."""

from __future__ import annotations

from gpucheck.check import Check
from gpucheck.embedded import embedded_parity
from gpucheck.staging import check_staging
from gpucheck.vllm_stages import parity, recovery, speed_of_vllm

CHECKS = (
    Check("staging", "every copy on the device's streams is in order", 20, 0, False, check_staging),
    Check("embedded-2", "embedded engine, 2 stages on one card: unsplit tokens", 40, 0, False, embedded_parity(2)),
    Check("embedded-3", "embedded engine, 3 stages on one card: unsplit tokens", 45, 0, False, embedded_parity(3)),
    Check("parity-v1-eager", "vLLM, V1, eager: unsplit tokens", 90, 1, True, parity("v1", eager=True)),
    Check("recovery-v1-eager", "vLLM, V1, eager: a stage is killed", 120, 1, True, recovery("v1", eager=True)),
    Check("parity-v1-graphs", "vLLM, V1, graphs: unsplit tokens", 150, 1, True, parity("v1", eager=False)),
    Check("recovery-v1-graphs", "vLLM, V1, graphs: a stage is killed", 180, 1, True, recovery("v1", eager=False)),
    Check("parity-v2-eager", "vLLM, V2, eager: unsplit tokens", 90, 1, True, parity("v2", eager=True)),
    Check("recovery-v2-eager", "vLLM, V2, eager: a stage is killed", 120, 1, True, recovery("v2", eager=True)),
    Check("parity-v2-graphs", "vLLM, V2, graphs: unsplit tokens", 150, 1, True, parity("v2", eager=False)),
    Check("recovery-v2-graphs", "vLLM, V2, graphs: a stage is killed", 180, 1, True, recovery("v2", eager=False)),
    Check("speed-unsplit", "vLLM unsplit on one card, graphs: tokens/s", 90, 1, True, speed_of_vllm(1)),
    Check("speed-native", "vLLM's own pipeline over two cards, graphs: tokens/s", 100, 2, True, speed_of_vllm(2)),
)
