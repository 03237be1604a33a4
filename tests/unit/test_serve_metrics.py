# SPDX-License-Identifier: Apache-2.0
"""Prometheus texts of several servers merged into one."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from prometheus_client.parser import text_string_to_metric_families

from zpptool.serve.metrics import generated_tokens, merged


def test_the_metrics_of_a_single_server_are_forwarded_unchanged() -> None:
    text = "anything # at all\n\n"
    assert merged({"a": text}, "# TYPE y gauge\ny 1\n") == text + "# TYPE y gauge\ny 1\n"


def samples(text: str) -> list[tuple[str, dict[str, str], float, object]]:
    """The samples of a text, as a scraper reads them."""
    families = text_string_to_metric_families(text)
    return [(each.name, each.labels, each.value, each.timestamp) for family in families for each in family.samples]


def test_merged_metrics_keep_values_and_labels() -> None:
    text = '# HELP x How\\nmany.\n# TYPE x gauge\nx{a="b,}c",e="\\\\"} 1e-3 1700\nx 2\n'
    found = merged({'p"q': text, "r": ""}, "")
    assert found.startswith("# HELP x How\\nmany.\n# TYPE x gauge\n")
    assert samples(found) == [
        ("x", {"replica": 'p"q', "a": "b,}c", "e": "\\"}, 1e-3, 1.7),
        ("x", {"replica": 'p"q'}, 2.0, None),
    ]


def test_a_family_of_several_servers_is_written_once() -> None:
    histogram = '# HELP y Seconds.\n# TYPE y histogram\ny_bucket{le="+Inf"} 3\ny_count 3\ny_sum 1.5\n'
    text = histogram + "# TYPE c_total counter\nc_total 4\n"
    found = merged({"a": text, "b": text}, "# TYPE z gauge\nz 1\n")
    assert [line for line in found.splitlines() if line.startswith("# TYPE")] == [
        "# TYPE z gauge", "# TYPE y histogram", "# TYPE c_total counter",
    ]  # fmt: skip
    assert ("y_count", {"replica": "b"}, 3.0, None) in samples(found)
    assert ("c_total", {"replica": "a"}, 4.0, None) in samples(found)


def test_what_is_not_prometheus_text_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    found = merged({"a": "x 1\n", "b": "<html>no metrics here</html>\n"}, "")
    assert samples(found) == [("x", {"replica": "a"}, 1.0, None)]
    assert "the metrics of b are not in Prometheus' format" in caplog.text
    assert generated_tokens("generation_tokens_total is not here\n") == 0


def test_another_gateways_metrics_are_merged_with_the_gateways_own() -> None:
    own = '# TYPE x gauge\nx{replica="p"} 1\n'
    remote = '# TYPE x gauge\nx{replica="p",peer="a"} 2\n# TYPE z gauge\nz 3\n'
    assert samples(merged({"far": remote}, own)) == [
        ("x", {"replica": "p"}, 1.0, None),
        ("x", {"replica": "far", "exported_replica": "p", "peer": "a"}, 2.0, None),
        ("z", {"replica": "far"}, 3.0, None),
    ]


def test_tokens_are_summed_over_all_labels() -> None:
    assert generated_tokens('vllm:generation_tokens_total{m="a"} 2.0\nvllm:generation_tokens_total{m="b"} 3e0\n') == 5
    assert generated_tokens("vllm:generation_tokens_created 9\n") == 0
