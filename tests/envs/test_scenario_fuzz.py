"""Any text as a scenario: it is read as a whole, or refused in one line, soon."""

import copy
import itertools
import time
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayfold.envs.scenario_file import ScenarioFile, read_shipped, shipped_scenarios, to_spec
from rayfold.envs.scenario_schema import parse_scenario
from rayfold.envs.scenario_traffic import to_traffic
from rayfold.errors import InputError

MAX_S = 10.0  # of one text, on a busy machine
TEXTS = {name: read_shipped(name) for name in shipped_scenarios()}
SMALL = [name for name in TEXTS if len(TEXTS[name]) < 4000]
FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def read(text: str) -> bool:
    """Parses and converts: whether it is a scenario. Any other end than an ``InputError`` of one line is a failure."""
    begin_s = time.process_time()
    try:
        file = ScenarioFile("fuzz", "fuzz.yaml", None, parse_scenario(text, "fuzz.yaml", read_shipped))
        assert to_spec(file).arrays.demand.size
        to_traffic(file, None, synthetic=True)
    except InputError as err:
        line = str(err)
        assert line.isprintable(), line
        assert len(line) < 2000
        return False
    finally:
        assert time.process_time() - begin_s < MAX_S
    return True


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values within a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *itertools.chain.from_iterable(places(v, (*path, k)) for k, v in items)]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with one value replaced."""
    if not path:
        return new
    out = copy.copy(value)
    out[path[0]] = put(value[path[0]], path[1:], new)
    return out


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**9, 10**18, 2**63, 2**64, -(2**63), 10**30, 10**400, 1e-300, 1e9, 1e30, 1e300, -1e300, 5e-324]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", " ", "GPU", "1", "~", "head", "nan", "9" * 5000, "a" * 5000, "\ud800", "\x00", "a\nb"]),
    st.recursive(
        st.one_of(st.none(), st.integers(-2, 9), st.floats(), st.text(max_size=3)),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
        max_leaves=8,
    ),
)


@pytest.mark.parametrize("name", TEXTS)
def test_shipped_texts_are_read(name: str) -> None:
    """The texts that are broken below are whole."""
    assert read(TEXTS[name])


@FUZZ
@given(name=st.sampled_from(SMALL), data=st.data())
def test_values_replaced(name: str, data: st.DataObject) -> None:
    """One to three values of a valid scenario become something else."""
    value = yaml.safe_load(TEXTS[name])
    for _ in range(data.draw(st.integers(1, 3))):
        value = put(value, data.draw(st.sampled_from(places(value))), data.draw(ODD))
    read(yaml.safe_dump(value))


@FUZZ
@given(name=st.sampled_from(SMALL), data=st.data())
def test_keys_dropped_and_added(name: str, data: st.DataObject) -> None:
    """A mapping loses a key and gains one, of any type."""
    value = copy.deepcopy(yaml.safe_load(TEXTS[name]))
    mappings = [path for path in places(value) if isinstance(_at(value, path), dict)]
    mapping = _at(value, data.draw(st.sampled_from(mappings)))
    if mapping and data.draw(st.booleans()):
        del mapping[data.draw(st.sampled_from(sorted(mapping)))]
    if data.draw(st.booleans()):
        key = data.draw(st.one_of(st.text(max_size=4), st.integers(), st.none(), st.floats(), st.sampled_from(FIELDS)))
        mapping[key] = data.draw(ODD)
    read(yaml.safe_dump(value))


FIELDS = ["count", "extends", "parts", "every_deployment", "every_node_type", "gang_size", "initial_replicas", "<<"]


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


@FUZZ
@given(name=st.sampled_from(SMALL), data=st.data())
def test_lines_cut_doubled_and_swapped(name: str, data: st.DataObject) -> None:
    """The text itself: cut, a line twice, two lines swapped, a character changed."""
    text = TEXTS[name]
    lines = text.splitlines(keepends=True)
    i, j = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    match data.draw(st.sampled_from(["cut", "twice", "swap", "character"])):
        case "cut":
            text = text[: data.draw(st.integers(0, len(text)))]
        case "twice":
            text = "".join([*lines[: i + 1], *lines[i:]])
        case "swap":
            lines[i], lines[j] = lines[j], lines[i]
            text = "".join(lines)
        case "character":
            k = data.draw(st.integers(0, len(text) - 1))
            text = text[:k] + data.draw(st.characters()) + text[k + 1 :]
    read(text)


@FUZZ
@given(st.one_of(st.text(), st.text(alphabet="[]{}:,-&*!|>%@?#'\" \n\tax1.~<=e_")))
def test_any_text(text: str) -> None:
    """No text is a scenario by chance."""
    assert not read(text)


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Bytes as text."""
    assert not read(data.decode("utf-8", "surrogateescape"))
    assert not read(data.decode("latin-1"))


LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
CHAIN = "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 3000))
WIDE = f"""
description: {{&d x: y}}
horizon_s: 600
x: &f {{{", ".join(f"k{i}: v" for i in range(300))}}}
y: &g [{", ".join(["*f"] * 300)}]
node_types: [{{name: n, resources: {{GPU: 1}}, price_usd_per_h: 1}}]
deployments: [{", ".join(["{label_fallbacks: *g}"] * 300)}]
"""


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("&a [*a]", "a value that contains itself"),
        ("&a {b: {c: *a}}", "a value that contains itself"),
        ("&a {<<: *a}", "a value that contains itself"),
        ("a0: &a0 [x]\n" + LAUGHS, "more than 200000 values, aliases unfolded"),
        ("a0: &a0 {x: 1}\n" + MERGES, "more than 200000 values, aliases unfolded"),
        (WIDE, "more than 200000 values, aliases unfolded"),
        ("a0: &a0 [x]\n" + CHAIN, "a value more than 40 levels deep"),
        ("[" * 60 + "]" * 60, "a value more than 40 levels deep"),
        ("[" * 100_000, "a value more than 40 levels deep"),
        ("{a: " * 20_000 + "1" + "}" * 20_000, "a value more than 40 levels deep"),
        ("- " * 50_000, "a value more than 40 levels deep"),
        ("!" * 300_000, "300000"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("!!python/object:rayfold.errors.InputError {}", "could not determine a constructor"),
        ("!!python/name:os.system", "could not determine a constructor"),
        ("a: 1\na: 2", "key 'a' twice"),
        ("!!timestamp x", "NoneType"),
        ("!!bool x", "x"),
        ("!!int ''", "index out of range"),
        ("!!float ''", "index out of range"),
        ("a: 2001-13-45", "month"),
        ("? [a]\n: 1", "unhashable"),
        ("? {a: 1}\n: 1", "unhashable"),
        ("a: *b", "undefined alias"),
        ("%YAML 9.1\n--- a", "incompatible"),
        ("a: 1\n---\nb: 2", "another document"),
        ("horizon_s: " + "9" * 5000, "4300"),
        ("\x00", "special characters"),
    ],
)
def test_bombs_and_tags_are_refused_soon(text: str, got: str) -> None:
    """Aliases that unfold, deep nesting, Python tags, and what PyYAML itself stumbles over."""
    begin_s = time.process_time()
    with pytest.raises(InputError) as err:
        parse_scenario(text, "bomb.yaml", read_shipped)
    assert time.process_time() - begin_s < MAX_S
    assert str(err.value).isprintable()
    assert got in str(err.value)


@pytest.mark.parametrize("text", ["", "~", "[]", "1", "x", "2001-01-01", "!!set {a}", "!!binary aGk=", "# nothing"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    """One line that tells the keys."""
    with pytest.raises(InputError, match=r"a mapping with keys description, horizon_s|one of the keys description"):
        parse_scenario(text, "x.yaml", read_shipped)
