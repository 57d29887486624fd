"""YAML of strangers: no key given twice, no tags of Python, no small text that unfolds into a huge value."""

from typing import Any, NamedTuple

import yaml

from rayfold.errors import InputError

__all__ = ["MAX_CHARACTERS", "load_yaml"]

MAX_CHARACTERS = 1 << 18  # of a file; a scenario of a hundred deployments, written out, has a quarter of it
_MAX_VALUES = 200_000  # with every alias unfolded
_MAX_DEPTH = 40
# What PyYAML raises, besides its own errors, for "!!timestamp x", "!!bool x", "!!int ''" and the like.
_TAG_ERRORS = (ValueError, AttributeError, LookupError, TypeError, ArithmeticError)


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, which plain YAML would drop silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key_node.value!r} twice", problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def load_yaml(text: str, where: str) -> Any:
    """Parses one YAML document.

    Args:
        text: The document.
        where: Its name, for messages.

    Raises:
        InputError: Not YAML, a key given twice, or too long, deep or large with its aliases unfolded.
    """
    if len(text) > MAX_CHARACTERS:
        raise InputError(where, f"at most {MAX_CHARACTERS} characters", len(text))
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _extent(node, {}, 0)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        raise InputError(place, "valid YAML", _one_line(err.problem or err.context)) from None
    except RecursionError:
        raise InputError(where, "valid YAML", f"a value more than {_MAX_DEPTH} levels deep") from None
    except (yaml.YAMLError, *_TAG_ERRORS) as err:
        raise InputError(where, "valid YAML", _one_line(err) or type(err).__name__) from None


class _Extent(NamedTuple):
    """How large a value is with every alias unfolded."""

    num_values: int
    height: int


def _extent(node: yaml.Node, known: dict[int, _Extent | None], depth: int) -> _Extent:
    """Measures a node without unfolding it.

    Args:
        node: The node.
        known: By identity, None = is being measured: an alias to it is one to itself.
        depth: How deep the node is.

    Raises:
        yaml.MarkedYAMLError: Too many values, too deep, or a value that is a part of itself.
    """
    if id(node) not in known:
        if depth > _MAX_DEPTH:
            raise _refusal(node, f"a value more than {_MAX_DEPTH} levels deep")
        known[id(node)] = None
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        inside = [_extent(part, known, depth + 1) for part in parts]
        known[id(node)] = _Extent(1 + sum(e.num_values for e in inside), 1 + max((e.height for e in inside), default=0))
    extent = known[id(node)]
    if extent is None:
        raise _refusal(node, "a value that contains itself")
    if extent.num_values > _MAX_VALUES:
        raise _refusal(node, f"more than {_MAX_VALUES} values, aliases unfolded")
    if depth + extent.height > _MAX_DEPTH + 1:
        raise _refusal(node, f"a value more than {_MAX_DEPTH} levels deep")
    return extent


def _refusal(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _one_line(problem: object) -> str:
    return " ".join(str(problem).split())
