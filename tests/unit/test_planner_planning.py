# SPDX-License-Identifier: Apache-2.0
"""Plans for models on devices: what they hold, what they refuse, and that more of anything makes none worse."""

from __future__ import annotations

import random
import time
from typing import Any

import msgspec
import pytest
from checkpoints import index_of, llama, llama_config

from zpptool.checkpoint.structure import infer_structure
from zpptool.errors import ZppError
from zpptool.partition import LayerRange
from zpptool.planner.costs import Model
from zpptool.planner.device_profile import ATTENTION, CacheCosts
from zpptool.planner.devices import DevicesFile, Inventory
from zpptool.planner.explain import limits, prices
from zpptool.planner.planning import AS_FAST, Answer, make_answer
from zpptool.planner.report import report
from zpptool.planner.side_by_side import make_answers
from zpptool.planner.weights import stage_weights


def model(layers: int = 8) -> Model:
    index = index_of(llama(layers), llama_config(layers))
    weights = stage_weights(index, infer_structure(index))
    return Model(weights, 32, 2, CacheCosts(bytes_per_token={ATTENTION: 8}, block_size=1))


def inventory(content: dict[str, Any]) -> Inventory:
    """What read_devices makes of a file with this content, and no profiles."""
    devices = msgspec.convert({"zpptool-devices": 1, **content}, DevicesFile, strict=False)
    return Inventory(devices=devices, profiles={}, links=devices.links.pairs)


def content(memory: int = 3000, count: int = 3, **more: Any) -> dict[str, Any]:
    return {
        "kinds": {"x": {"memory": memory, "speed": {"memory_bytes_per_second": 1e6, "layer_seconds": 1e-4}}},
        "hosts": [{"name": f"h{number}", "kind": "x"} for number in range(count)],
        "links": {"default": {"round_trip_seconds": 1e-4, "bytes_per_second": 1e7}},
        "workload": {"prompt_tokens": 8, "answer_tokens": 8, "concurrency": 4},
        **more,
    }


def speed(answer: Answer) -> float:
    return answer.best.tokens_per_second.nominal


def test_stages_hold_what_they_are_planned_to_hold() -> None:
    own = model()
    plan = make_answer(inventory(content()), own).best
    assert [stage.layers.end for stage in plan.stages][-1] == 8
    for stage in plan.stages:
        assert stage.weights == own.weights.bytes[stage.layers.start][stage.layers.end]
        assert stage.cache == stage.layers.count * plan.point.sequences * 16 * 8
        assert 0 <= stage.free == stage.memory - stage.weights - stage.cache - stage.workspace


def test_the_faster_device_gets_more_layers() -> None:
    kinds = {
        "fast": {"memory": 7000, "speed": {"memory_bytes_per_second": 2e6}},
        "slow": {"memory": 7000, "speed": {"memory_bytes_per_second": 1e6}},
    }
    hosts = [{"name": "a", "kind": "fast"}, {"name": "b", "kind": "slow"}]
    plan = make_answer(inventory(content(kinds=kinds, hosts=hosts)), model(9)).best
    layers = {stage.host: stage.layers.count for stage in plan.stages}
    assert layers["a"] > layers["b"]


def test_fewer_requests_are_planned_where_caches_do_not_fit() -> None:
    workload = {"concurrency": 64, "prompt_tokens": 8, "answer_tokens": 8}
    plan = make_answer(inventory(content(memory=3000, workload=workload)), model()).best
    assert plan.point.sequences < 64
    assert plan.most_sequences is not None
    assert plan.point.sequences <= plan.most_sequences


def test_a_deficit_is_what_is_missing_to_the_byte() -> None:
    own = model()
    with pytest.raises(ZppError) as refused:
        make_answer(inventory(content(memory=1400)), own)
    deficit = refused.value.beside["deficit_bytes"]
    assert f"{deficit} bytes" in refused.value.message
    assert make_answer(inventory(content(memory=1400 + deficit)), own).best
    with pytest.raises(ZppError, match="lacks 1 bytes"):
        make_answer(inventory(content(memory=1400 + deficit - 1)), own)


def test_pins_exclusions_and_links_are_kept() -> None:
    pins = [{"host": "h2", "stage": "first"}, {"host": "h0", "layers": "7-8"}]
    plan = make_answer(inventory(content(pins=pins, exclude=["h1"])), model()).best
    assert [stage.host for stage in plan.stages] == ["h2", "h0"]
    with pytest.raises(ZppError, match="links"):
        make_answer(inventory(content(links={})), model())


def test_limits_of_time_are_kept_or_refused() -> None:
    workload = {"prompt_tokens": 8, "answer_tokens": 8, "concurrency": 4}
    given = content(memory=9000)
    free = make_answer(inventory({**given, "workload": workload}), model()).best
    alone = make_answer(inventory({**given, "workload": {**workload, "concurrency": 1}}), model()).best
    token = free.token_seconds.nominal
    limit = (token + alone.token_seconds.nominal) / 2
    with pytest.raises(ZppError, match="between two tokens"):
        make_answer(inventory({**given, "workload": {**workload, "tpot_seconds": token / 100}}), model())
    kept = make_answer(inventory({**given, "workload": {**workload, "tpot_seconds": limit}}), model()).best
    assert kept.token_seconds.nominal <= limit
    assert kept.point.sequences < free.point.sequences


def test_of_equal_plans_the_one_that_moves_less_is_chosen() -> None:
    held = {"h2": (LayerRange(0, 4),), "h0": (LayerRange(4, 8),)}
    plan = make_answer(inventory(content(count=3)), model(), in_force=held, most_stages=2).best
    at = {stage.host: stage.layers for stage in plan.stages}
    assert at["h2"].start == 0
    assert at["h0"].end == 8


def test_a_price_is_what_the_planner_finds_with_that_much_more() -> None:
    own = model()
    kinds = {
        "fast": {"memory": 3200, "speed": {"memory_bytes_per_second": 4e6}},
        "slow": {"memory": 8000, "speed": {"memory_bytes_per_second": 1e6}},
    }
    hosts = [{"name": "a", "kind": "fast"}, {"name": "b", "kind": "slow"}]
    asked = inventory(content(kinds=kinds, hosts=hosts))
    answer = make_answer(asked, own)
    assert limits(answer.best)[0].share == 1
    found = {price.change: price.gain for price in prices(answer, asked, own)}
    assert any(change.endswith(" on a") and gain > 0 for change, gain in found.items())
    made = report(answer, prices(answer, asked, own))
    assert made["binding"] == limits(answer.best)[0].name
    assert made["prices"]


def random_content(rng: random.Random) -> dict[str, Any]:
    kinds = {
        name: {
            "memory": rng.randint(1500, 6000),
            "speed": {"memory_bytes_per_second": rng.choice((1e6, 2e6, 5e6)), "layer_seconds": rng.choice((0, 1e-4))},
        }
        for name in "xy"
    }
    hosts = [{"name": f"h{n}", "kind": rng.choice("xy"), "devices": rng.choice((1, 1, 2))} for n in range(3)]
    pairs = [
        {
            "from": f"h{a}",
            "to": f"h{b}",
            "round_trip_seconds": rng.choice((1e-5, 1e-3)),
            "rates": [{"bytes": 1, "bytes_per_second": rng.choice((1e5, 1e6, 1e7))}],
            "source": "measured",
        }
        for a in range(3)
        for b in range(a)
    ]
    workload = {"prompt_tokens": 8, "answer_tokens": rng.choice((4, 8)), "concurrency": rng.choice((1, 3, 8))}
    return content(kinds=kinds, hosts=hosts, links={"pairs": pairs}, workload=workload)


def better(rng: random.Random, given: dict[str, Any]) -> dict[str, Any]:
    """The same with more memory, speed or bandwidth somewhere."""
    changed: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(given))
    match rng.choice(("memory", "speed", "link")):
        case "memory":
            changed["kinds"][rng.choice("xy")]["memory"] *= 1.3
            for kind in changed["kinds"].values():
                kind["memory"] = int(kind["memory"])
        case "speed":
            changed["kinds"][rng.choice("xy")]["speed"]["memory_bytes_per_second"] *= 1.7
        case "link":
            rng.choice(changed["links"]["pairs"])["rates"][0]["bytes_per_second"] *= 3
    return changed


def test_more_of_anything_makes_no_plan_worse() -> None:
    rng, own, compared = random.Random(5), model(6), 0
    for _ in range(60):
        given = random_content(rng)
        try:
            before = make_answer(inventory(given), own)
        except ZppError:
            continue
        after = make_answer(inventory(better(rng, given)), own)
        assert speed(after) >= speed(before) * (1 - AS_FAST)
        compared += 1
    assert compared > 30


def test_names_and_units_change_nothing_and_the_same_input_gives_the_same_bytes() -> None:
    given = content(memory=3 << 10)
    answer = make_answer(inventory(given), model())
    renamed = msgspec.json.decode(msgspec.json.encode(given).replace(b'":"h', b'":"zz'))
    renamed["kinds"]["x"]["memory"] = "3 KiB"
    other = make_answer(inventory(renamed), model())
    assert [stage.layers for stage in other.best.stages] == [stage.layers for stage in answer.best.stages]
    assert [stage.host.replace("zz", "h") for stage in other.best.stages] == [s.host for s in answer.best.stages]
    assert other.best.tokens_per_second == answer.best.tokens_per_second
    again = make_answer(inventory(given), model())
    assert msgspec.json.encode(report(again, [])) == msgspec.json.encode(report(answer, []))


def test_without_any_speed_it_plans_from_bytes_and_says_so() -> None:
    made = report(make_answer(inventory(content(kinds={"x": {"memory": 3000}})), model()), [])
    assert made["planned_from"] == "bytes"
    assert made["predicted"] is None


def test_two_pipelines_are_planned_where_they_serve_more_than_one() -> None:
    pytest.importorskip("highspy")
    hosts = [{"name": name, "kind": "x"} for name in ("east1", "east2", "west1", "west2")]
    fast, slow = {"round_trip_seconds": 1e-4, "bytes_per_second": 1e8}, {"round_trip_seconds": 0.5}
    pairs = [
        {
            "from": f"east{a}",
            "to": f"west{b}",
            "rates": [{"bytes": 1, "bytes_per_second": 1e4}],
            "source": "given",
            **slow,
        }
        for a in (1, 2)
        for b in (1, 2)
    ]
    given = content(memory=6000, hosts=hosts, links={"default": fast, "pairs": pairs})
    given["kinds"]["x"]["speed"] = {"memory_bytes_per_second": 1e9, "flops": 1e5}
    one = make_answers(inventory(given), model())
    two = make_answers(inventory({**given, "most_pipelines": 2}), model())
    assert len(two.pipelines) == 2
    assert two.rate > 1.3 * one.rate
    used = [[stage.host[:4] for stage in plan.stages] for plan in two.pipelines]
    assert sorted(set(map(tuple, used))) == [("east", "east"), ("west", "west")]
    hosts_used = [stage.host for plan in two.pipelines for stage in plan.stages]
    assert len(set(hosts_used)) == len(hosts_used)


def test_64_devices_of_8_kinds_and_128_layers_are_planned_in_seconds() -> None:
    rng = random.Random(1)
    kinds = {
        f"k{kind}": {
            "memory": rng.randint(2000, 6000),
            "speed": {"memory_bytes_per_second": 1e6 * rng.uniform(1, 6), "flops": 1e6 * rng.uniform(1, 5)},
        }
        for kind in range(8)
    }
    hosts = [{"name": f"h{kind}", "kind": f"k{kind}", "devices": 8} for kind in range(8)]
    workload = {"prompt_tokens": 8, "answer_tokens": 8, "concurrency": 64}
    given, own = inventory(content(kinds=kinds, hosts=hosts, workload=workload)), model(128)
    began = time.process_time()
    plan = make_answer(given, own).best
    assert time.process_time() - began < 5
    assert sum(stage.layers.count for stage in plan.stages) == 128
    assert all(stage.free >= 0 for stage in plan.stages)
