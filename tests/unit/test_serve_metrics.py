# SPDX-License-Identifier: Apache-2.0
"""Prometheus texts of several servers merged into one."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from zpptool.serve.metrics import generated_tokens, merged


def test_the_metrics_of_a_single_server_are_forwarded_unchanged() -> None:
    text = "anything # at all\n\n"
    assert merged({"a": text}, "# TYPE y gauge\ny 1\n") == text + "# TYPE y gauge\ny 1\n"


def test_merged_metrics_keep_values_and_labels() -> None:
    text = '# TYPE x gauge\nx{a="b,}c"} 1e-3 1700\nx 2\n'
    assert merged({'p"q': text, "r": ""}, "") == (
        '# TYPE x gauge\nx{replica="p\\"q",a="b,}c"} 1e-3 1700\nx{replica="p\\"q"} 2\n'
    )


def test_another_gateways_metrics_are_merged_with_the_gateways_own() -> None:
    own = '# TYPE x gauge\nx{replica="p"} 1\n'
    remote = '# TYPE x gauge\nx{replica="p",peer="a"} 2\n# TYPE z gauge\nz 3\n'
    assert merged({"far": remote}, own) == (
        '# TYPE x gauge\nx{replica="p"} 1\nx{replica="far",exported_replica="p",peer="a"} 2\n'
        '# TYPE z gauge\nz{replica="far"} 3\n'
    )


def test_tokens_are_summed_over_all_labels() -> None:
    assert generated_tokens('vllm:generation_tokens_total{m="a"} 2.0\nvllm:generation_tokens_total{m="b"} 3e0\n') == 5
    assert generated_tokens("vllm:generation_tokens_created 9\n") == 0
