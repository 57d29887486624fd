"""Mistakes in a scenario file: one line each, with file, path, what was expected and what is there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from rayfold.envs.scenario import Split, load_scenario
from rayfold.errors import InputError

HEADER = "t_s,series_id,requests,input_tokens,output_tokens\n"


def _valid() -> dict[str, Any]:
    return {
        "description": "A test.",
        "horizon_s": 600,
        "settings": {"substep_s": 5, "decision_interval_s": 60},
        "node_types": [
            {"name": "small", "resources": {"GPU": 4, "CPU": 8}, "price_usd_per_h": 1.0, "labels": {"zone": "x"}},
            {"name": "big", "resources": {"GPU": 8, "CPU": 8}, "price_usd_per_h": 2.5},
        ],
        "deployments": [
            {
                "name": name,
                "shape": {"bundles": [{"GPU": 1, "CPU": 1}]},
                "requests": {"output_tokens_per_request": 10, "generator": {"kind": "steady", "mean_rps": 1.0}},
            }
            for name in ("one", "two")
        ],
    }


def _set(data: Any, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        data = data[int(part)] if isinstance(data, list) else data.setdefault(part, {})
    data[int(last) if isinstance(data, list) else last] = value


def _error(folder: Path, text: str) -> tuple[InputError, str]:
    path = folder / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as err:
        load_scenario(path)
    assert "\n" not in str(err.value)
    assert err.value.where.startswith(str(path))
    return err.value, err.value.where.removeprefix(str(path)).removeprefix(": ")


def test_the_valid_file_is_valid(tmp_path: Path) -> None:
    """The base that the mistakes below are made in loads, with Serve's defaults."""
    path = tmp_path / "good.yaml"
    path.write_text(yaml.safe_dump(_valid()))
    scenario = load_scenario(str(path))
    assert scenario.name == "good"
    assert scenario.spec.deployments[0].key == "default/one"
    assert scenario.spec.deployments[0].autoscaling.downscale_delay_s == 600.0
    assert scenario.limits.max_concurrent_moves == 4


NAN = float("nan")


@pytest.mark.parametrize(
    ("path", "value", "where", "expected", "got"),
    [
        (
            "node_types.0.pricce",
            1,
            "node_types.0.pricce",
            "one of the keys name, resources, price_usd_per_h",
            "'pricce'",
        ),
        ("deployments.1.requests.generator.speed", 1, None, "one of the keys kind, mean_rps", "'speed'"),
        ("extra", 1, "extra", "one of the keys description, horizon_s", "'extra'"),
        ("node_types.1.price_usd_per_h", -2.0, None, "greater than or equal to 0", "-2.0"),
        ("node_types.1.price_usd_per_h", NAN, None, "a finite number", "nan"),
        ("node_types.1.price_usd_per_h", "cheap", None, "a valid number", "'cheap'"),
        ("node_types.1.price_usd_per_h", True, None, "a valid number", "True"),
        ("node_types.0.resources.GPU", 2.5, "node_types.0.resources", "a whole number of GPUs", "2.5"),
        ("node_types.0.min_nodes", 9, None, "at most max_nodes 8", "9"),
        ("node_types.1.name", "small", None, "a unique name", "'small'"),
        ("node_types.0.boot_s", [9, 3], None, "min <= max", "[9, 3]"),
        ("node_types", [], None, "at least 1 item", "[]"),
        ("node_types.0", "small", None, "a mapping with keys name, resources", "'small'"),
        ("deployments.1.name", "one", None, "a unique app/name", "'default/one' as in 0"),
        ("deployments.1.shape.bundles.0.GPU", 1.5, None, "at most 1, or a whole number", "1.5"),
        ("deployments.1.shape.bundles.0.GPU", NAN, None, "a finite number", "nan"),
        ("deployments.1.shape.bundles", [{"CPU": 0}], "deployments.1.shape.bundles.0", "some resource above 0", "none"),
        (
            "deployments.1.shape.bundles",
            [{"GPU": 1}] * 2,
            "deployments.1.shape.strategy",
            "PACK or STRICT_PACK",
            "NONE",
        ),
        (
            "deployments.0.shape.bundles.0.GPU",
            16,
            "deployments.0.shape",
            "small: GPU 4, CPU 8; big: GPU 8",
            "GPU 16, CPU 1",
        ),
        ("deployments.0.shape.bundles.0.TPU", 1, "deployments.0.shape", "an empty node", "TPU 1"),
        ("deployments.0.label_selector", {"zone": "y"}, None, "labels that some node type has", "{'zone': 'y'}"),
        ("deployments.0.autoscaling.min_replicas", 10, None, "at most max_replicas 8", "10"),
        ("deployments.0.autoscaling.min_replicas", 1.5, None, "a valid integer", "1.5"),
        ("deployments.0.autoscaling.initial_replicas", 0, None, "1..8", "0"),
        ("deployments.0.autoscaling.target_ongoing_requests", 0, None, "greater than 0", "0"),
        ("deployments.0.max_ongoing_requests", 1, None, "at least target_ongoing_requests 2", "1"),
        ("deployments.0.shape.strategy", "SPRAED", None, "'NONE', 'PACK', 'SPREAD' or 'STRICT_PACK'", "'SPRAED'"),
        ("deployments.0.requests.generator.kind", "wild", None, "'steady', 'diurnal'", "'wild'"),
        ("deployments.0.requests.generator.mean_rps", -1, None, "greater than or equal to 0", "-1"),
        (
            "deployments.0.requests",
            {"output_tokens_per_request": 1},
            "deployments.0.requests.generator",
            "a gen",
            "nothing",
        ),
        ("deployments.0.requests.output_tokens_per_request", None, None, "a number", "nothing"),
        ("deployments.0.requests.tpot_s", -0.1, None, "greater than or equal to 0", "-0.1"),
        ("settings.substep_s", 7, None, "a divisor of decision_interval_s 60", "7"),
        ("settings.substep_s", 120, None, "a divisor of decision_interval_s 60", "120"),
        ("settings.scheduling", "random", None, "'spread' or 'pack'", "'random'"),
        ("horizon_s", 601, None, "a multiple of the decision interval 60 s", "601"),
        ("limits.fence_s", -1, None, "greater than or equal to 0", "-1"),
    ],
)
def test_each_mistake_is_one_line(
    tmp_path: Path, path: str, value: object, where: str | None, expected: str, got: str
) -> None:
    """One field of a valid file is broken; the message names exactly that field."""
    data = _valid()
    _set(data, path, value)
    error, place = _error(tmp_path, yaml.safe_dump(data))
    assert place == (where or path)
    assert expected in error.expected
    assert got in str(error.got)


@pytest.mark.parametrize("key", ["description", "horizon_s", "node_types", "deployments"])
def test_missing_key(tmp_path: Path, key: str) -> None:
    """A required key that is absent is named."""
    data = _valid()
    del data[key]
    error, place = _error(tmp_path, yaml.safe_dump(data))
    assert (place, error.expected, error.got) == (key, "a value", "nothing")


@pytest.mark.parametrize(
    ("text", "place", "got"),
    [
        ("description: [1, 2\nhorizon_s: 3\n", ":2", "expected ',' or ']'"),
        ("description: a\nhorizon_s: 3\nhorizon_s: 4\n", ":3", "key 'horizon_s' twice"),
        ("a: !!python/object:os.system {}\n", ":1", "could not determine a constructor"),
        ("a: \x01\n", "", "special characters are not allowed"),
    ],
)
def test_malformed_yaml(tmp_path: Path, text: str, place: str, got: str) -> None:
    """Broken YAML, a key given twice and tags that would run code are refused with their line."""
    error, where = _error(tmp_path, text)
    assert (where, error.expected) == (place, "valid YAML")
    assert got in str(error.got)


@pytest.mark.parametrize("text", ["", "just text", "- a\n- list\n"])
def test_not_a_mapping(tmp_path: Path, text: str) -> None:
    """Other YAML than a mapping is refused at the top."""
    error, place = _error(tmp_path, text)
    assert place == ""
    assert error.expected.startswith("a mapping with keys description, horizon_s")


def test_no_such_scenario(tmp_path: Path) -> None:
    """An unknown name lists the shipped ones; folders and binary files are refused alike."""
    with pytest.raises(
        InputError, match=r"scenario nonesuch: expected a readable YAML file or one of busy_100, .*no such"
    ):
        load_scenario("nonesuch")
    with pytest.raises(InputError, match="IsADirectoryError"):
        load_scenario(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match="UnicodeDecodeError"):
        load_scenario(tmp_path / "b.yaml")


def test_absent_trace_says_what_to_do(tmp_path: Path) -> None:
    """Which file, where it was looked for, and the two ways on; ``synthetic`` is one of them."""
    with pytest.raises(InputError) as err:
        load_scenario("llm_api", tmp_path)
    text = str(err.value)
    assert text.startswith("llm_api.yaml: traffic.traces.0: expected trace file servegen_m-large_600s.csv.gz")
    assert "--traces DIR" in text
    assert "--synthetic" in text
    assert str(tmp_path) in text
    assert load_scenario("llm_api", tmp_path, synthetic=True).is_synthetic


def _with_traces(folder: Path, *names: str) -> dict[str, Any]:
    data = _valid()
    data["traffic"] = {"traces": list(names), "train_days": [0, 1], "validation_days": [1, 2]}
    for d in data["deployments"]:
        d["requests"] = {"series": "s"}
    rows = "".join(f"{3600 * b},s,36,1,360\n" for b in range(48))
    (folder / "t_3600s.csv").write_text(HEADER + rows)
    return data


def test_trace_beside_the_scenario_or_in_the_folder_given(tmp_path: Path) -> None:
    """Both places are searched."""
    data = _with_traces(tmp_path, "t_3600s.csv")
    (tmp_path / "here.yaml").write_text(yaml.safe_dump(data))
    assert load_scenario(tmp_path / "here.yaml").traffic_name == "t_3600s.csv"
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    (elsewhere / "away.yaml").write_text(yaml.safe_dump(data))
    assert load_scenario(elsewhere / "away.yaml", tmp_path).requests.tokens_per_request[0] == 10.0


def test_scale_multiplies_the_rate_of_its_deployment_only(tmp_path: Path) -> None:
    """36 requests in an hour are 0.01 per second; the second deployment asks for 2.5 times that."""
    data = _with_traces(tmp_path, "t_3600s.csv")
    data["deployments"][1]["requests"]["scale"] = 2.5
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(data))
    rates = load_scenario(tmp_path / "x.yaml").source.rates(np.random.default_rng(0), Split.TRAIN, 86400.0).rates_rps
    np.testing.assert_allclose(rates, np.tile([0.01, 0.025], (24, 1)))


@pytest.mark.parametrize(
    ("path", "value", "expected", "got"),
    [
        ("deployments.1.requests.series", "q", "a series_id of t_3600s.csv", "'q'"),
        ("deployments.1.requests.series", None, "a series_id of t_3600s.csv", "nothing"),
        ("deployments.1.requests.scale", 0, "greater than 0", "0"),
        ("horizon_s", 2 * 86400, "at most 86400 s, the train part of t_3600s.csv", "172800"),
        ("traffic.train_days", [1, 0], "min <= max", "[1, 0]"),
    ],
)
def test_mistakes_about_traces(tmp_path: Path, path: str, value: object, expected: str, got: str) -> None:
    """Series, scales and days that the trace does not have."""
    data = _with_traces(tmp_path, "t_3600s.csv")
    _set(data, path, value)
    error, place = _error(tmp_path, yaml.safe_dump(data))
    assert place == path
    assert expected in error.expected
    assert got in str(error.got)


def test_validation_days_beyond_the_trace(tmp_path: Path) -> None:
    """The default days ask for a fortnight; a shorter trace is refused instead of sampled across the border."""
    data = _with_traces(tmp_path, "t_3600s.csv")
    data["traffic"] = {"traces": ["t_3600s.csv"]}
    error, place = _error(tmp_path, yaml.safe_dump(data))
    assert place == "horizon_s"
    assert error.expected == "at most 0 s, the validation part of t_3600s.csv"


def test_bins_of_several_traces_must_agree(tmp_path: Path) -> None:
    """One bin width per scenario."""
    data = _with_traces(tmp_path, "t_3600s.csv", "u_60s.csv")
    (tmp_path / "u_60s.csv").write_text(HEADER + "0,u,1,1,1\n")
    error, place = _error(tmp_path, yaml.safe_dump(data))
    assert (place, error.expected, error.got) == ("traffic.traces.1", "bins of 3600 s, as in the first file", "60 s")


def test_unknown_tokens_ask_for_a_number(tmp_path: Path) -> None:
    """A series whose tokens are all blank needs ``output_tokens_per_request``."""
    data = _with_traces(tmp_path, "t_3600s.csv")
    (tmp_path / "t_3600s.csv").write_text(HEADER + "".join(f"{3600 * b},s,36,,\n" for b in range(48)))
    _, place = _error(tmp_path, yaml.safe_dump(data))
    assert place == "deployments.0.requests.output_tokens_per_request"


def test_count_makes_deployments_of_a_kind(tmp_path: Path) -> None:
    """``count: 3`` is name-0 to name-2, alike in all else; a mistake is told where it is in the file."""
    data = _valid()
    data["deployments"][0] |= {"count": 3}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(data))
    deployments = load_scenario(tmp_path / "x.yaml").spec.deployments
    assert [d.name for d in deployments] == ["one-0", "one-1", "one-2", "two"]
    assert all(replace(d, name="two") == deployments[3] for d in deployments)
    data["deployments"][1] |= {"name": "one-1"}
    assert _error(tmp_path, yaml.safe_dump(data))[1] == "deployments.1.name"
    data["deployments"][1] |= {"name": "two", "shape": {"bundles": [{"GPU": 16}]}}
    assert _error(tmp_path, yaml.safe_dump(data))[1] == "deployments.1.shape"
    for bad in (0, 1001, 2.0, "3"):
        data["deployments"][0]["count"] = bad
        assert _error(tmp_path, yaml.safe_dump(data))[1] == "deployments.0.count"


def test_parts_are_scaled_shifted_and_added(tmp_path: Path) -> None:
    """An hour's bin b has b + 1 requests/s: 2 x the series and 1 x it six hours later, round within each day."""
    data = _with_traces(tmp_path, "t_3600s.csv")
    (tmp_path / "t_3600s.csv").write_text(
        HEADER + "".join(f"{3600 * b},s,{3600 * (b + 1)},1,{36000 * (b + 1)}\n" for b in range(48))
    )
    requests = data["deployments"][1]["requests"]
    del requests["series"]
    requests["parts"] = [{"series": "s", "scale": 2}, {"series": "s", "shift_h": 6}]
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(data))
    rates = load_scenario(tmp_path / "x.yaml").source.rates(np.random.default_rng(0), Split.TRAIN, 86400.0).rates_rps
    hours = np.arange(24)
    np.testing.assert_allclose(rates[:, 0], hours + 1)
    np.testing.assert_allclose(rates[:, 1], 2 * (hours + 1) + (hours - 6) % 24 + 1)


@pytest.mark.parametrize(
    ("requests", "path", "expected"),
    [
        ({"series": "s", "parts": [{"series": "s"}]}, "", "not both"),
        ({"scale": 2, "parts": [{"series": "s"}]}, "", "not both"),
        ({"parts": []}, ".parts", "at least 1 item"),
        ({"parts": [{"series": "s"}, {"series": "q"}]}, ".parts.1.series", "a series_id of t_3600s.csv"),
        ({"parts": [{"series": "s", "shift_h": 0.5}]}, ".parts.0.shift_h", "a whole number of bins of 3600 s"),
        ({"parts": [{"series": "s", "scale": -1}]}, ".parts.0.scale", "greater than 0"),
        ({"parts": [{"scale": 1}]}, ".parts.0.series", "a value"),
    ],
)
def test_mistakes_about_parts(tmp_path: Path, requests: dict[str, Any], path: str, expected: str) -> None:
    """One line with the part's number."""
    data = _with_traces(tmp_path, "t_3600s.csv")
    data["deployments"][1]["requests"] = requests
    error, place = _error(tmp_path, yaml.safe_dump(data))
    assert place == f"deployments.1.requests{path}"
    assert expected in error.expected


def test_days_of_training_and_validation_are_not_the_same(tmp_path: Path) -> None:
    """A day in both would leak."""
    data = _with_traces(tmp_path, "t_3600s.csv")
    data["traffic"] |= {"train_days": [0, 2], "validation_days": [1, 2]}
    assert _error(tmp_path, yaml.safe_dump(data))[1] == "traffic.validation_days"


@pytest.mark.parametrize(
    ("path", "value", "where", "expected"),
    [
        ("horizon_s", 367 * 86400, "horizon_s", "less than or equal to 31622400"),
        ("horizon_s", 366 * 86400, None, None),
        ("settings", {"substep_s": 1, "decision_interval_s": 60}, None, None),
        (
            "settings",
            {"substep_s": 0.01, "decision_interval_s": 60},
            "horizon_s",
            "with 2 deployments and steps of 0.01 s",
        ),
        ("traffic", {"generator_bin_s": 0.01}, "horizon_s", "with 2 deployments and steps of 0.01 s"),
        ("deployments.1.count", 1000, "horizon_s", "at most 249750 s with 1001 deployments and steps of 5 s"),
        ("node_types.1.max_nodes", 10_000, None, None),
        ("deployments.1.autoscaling", {"max_replicas": 10_000}, None, None),
    ],
)
def test_what_no_machine_could_hold_is_refused(
    tmp_path: Path, path: str, value: object, where: str | None, expected: str | None
) -> None:
    """At most a leap year, and 50 million steps times deployments; what is allowed loads in a moment."""
    data = _valid() | {"horizon_s": 30 * 86400}
    _set(data, path, value)
    if where is None:
        (tmp_path / "x.yaml").write_text(yaml.safe_dump(data))
        load_scenario(tmp_path / "x.yaml")
        return
    error, place = _error(tmp_path, yaml.safe_dump(data))
    assert place == where
    assert expected is not None
    assert expected in error.expected


def test_sizes_add_up_before_they_are_refused(tmp_path: Path) -> None:
    """Nodes, deployments, replicas, bundles of a gang and kinds of resources."""
    data = _valid()
    data["node_types"] += [data["node_types"][1] | {"name": f"t{i}", "max_nodes": 10_000} for i in range(2)]
    assert _error(tmp_path, yaml.safe_dump(data))[1] == "node_types"
    data = _valid()
    data["deployments"] += [data["deployments"][1] | {"name": f"d{i}", "count": 1000} for i in range(2)]
    assert _error(tmp_path, yaml.safe_dump(data))[1] == "deployments"
    data = _valid()
    data["deployments"][0] |= {"count": 30, "autoscaling": {"max_replicas": 10_000}}
    assert _error(tmp_path, yaml.safe_dump(data))[1] == "deployments"
    data = _valid()
    data["deployments"][0] |= {"gang_size": 64, "shape": {"bundles": [{"GPU": 1}] * 2, "strategy": "PACK"}}
    assert _error(tmp_path, yaml.safe_dump(data))[1] == "deployments.0.gang_size"
    data = _valid()
    data["node_types"][0]["resources"] |= {f"r{i}": 1 for i in range(40)}
    assert _error(tmp_path, yaml.safe_dump(data))[1] == "node_types"


def test_a_scenario_may_extend_one_that_extends(tmp_path: Path) -> None:
    """``slow_start`` extends ``llm_api``; what extends ``slow_start`` has its times and the deployments of both."""
    (tmp_path / "x.yaml").write_text("extends: slow_start\nhorizon_s: 3600\ntraffic: {traces: []}\n")
    spec = load_scenario(tmp_path / "x.yaml").spec
    assert len(spec.deployments) == 24
    assert spec.deployments[0].startup_s == (300.0, 900.0)
