"""This module finds the parts of a config's text that YAML reads in another way than the user wrote them.

Such parts are keys that stand twice in one map, maps and lists that contain themselves, and words or numbers that YAML 1.1 reads as another value. The
checks read the nodes that YAML composes from the text, because a loaded value does not show how the text was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from raysweep.config.mistakes import KeyPath, Mistake
from raysweep.config.schema import Schema, allowed, schema_at, types_of

_TAG_PREFIX = "tag:yaml.org,2002:"
_MERGE = f"{_TAG_PREFIX}merge"
# YAML reads `010` as the octal number 8, and `1:30` as 90, which is 1 minute and 30 seconds in seconds.
_OCTAL_OR_TIME = re.compile(r"[+-]?0[0-7_]+|.*:.*")
# Where the config expects a number, these numbers are clear. Elsewhere the user may mean text.
_BINARY_HEX_OR_GROUPED = re.compile(r"[+-]?0[bx].*|.*_.*")


class Loop(Mistake):
    """Describes a map or list that contains itself. No later check can read the config."""


def compose(text: str) -> yaml.Node | None:
    """Return the node of a YAML text, or None where the text is empty. Raises yaml.YAMLError where the text is not YAML."""
    node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    return node


def node_at(node: yaml.Node | None, keys: KeyPath) -> yaml.Node | None:
    """Return the node to which `keys` lead from `node`, or None where there is no such node."""
    for key in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        node = next((inner for name, inner in pairs if name.value == str(key)), None)
    return node


def value_of(node: yaml.Node) -> Any:
    """Return the value of a node, with text as the keys of maps. A date stays text."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: value_of(inner) for key, inner in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [value_of(inner) for inner in node.value]
    return node.value if _kind(node) == "timestamp" else _loaded(node)


def text_mistakes(node: yaml.Node | None, file: str, path: KeyPath = ()) -> Iterator[Mistake]:
    """Yield the mistakes in the text of a config file, or of one value of `--config`.

    `file` is the name of the file for the user. `path` leads to `node` in the config of this workflow.
    """
    yield from _TextCheck(file).mistakes(node, path)


def _kind(node: yaml.Node) -> str:
    """Return the name of YAML for the type of a scalar, such as `bool`."""
    return str(node.tag).removeprefix(_TAG_PREFIX)


def _loaded(node: yaml.Node) -> Any:
    return yaml.SafeLoader("").construct_object(node, deep=True)


def _is_misread(node: yaml.ScalarNode, types: list[str]) -> bool:
    """Return whether YAML reads a scalar as a value that the user may not mean. `types` are the types that the config expects."""
    kind, text = _kind(node), node.value
    if kind == "bool":
        return text.lower() not in ("true", "false") and "boolean" not in types
    if kind in ("int", "float"):
        is_number_expected = "number" in types or "integer" in types
        return bool(_OCTAL_OR_TIME.fullmatch(text) or (not is_number_expected and _BINARY_HEX_OR_GROUPED.fullmatch(text)))
    return kind == "timestamp"


def _misread_as(node: yaml.ScalarNode) -> str:
    """Return the beginning of the message for a scalar that YAML reads in another way than the user wrote the scalar."""
    read = "a date" if _kind(node) == "timestamp" else json.dumps(_loaded(node))
    return f"{node.value} is not allowed: YAML reads {node.value} as {read}."


def _misread_value(node: yaml.ScalarNode, schema: Schema) -> str:
    """Return the message for a value that YAML reads in another way than the user wrote the value. `schema` describes the allowed values."""
    quoted = f"Write '{node.value}' with the quotes"
    if not schema:
        return f"{_misread_as(node)} {quoted}{'' if _kind(node) == 'timestamp' else f', or {json.dumps(_loaded(node))}'}"
    takes_text = "string" in types_of(schema) and "number" not in types_of(schema)  # text such as 3h is no remedy for a number
    remedy = f" {quoted} if text is meant." if takes_text else ""
    return f"{_misread_as(node)}{remedy} Allowed: {allowed(schema)}"


@dataclass
class _TextCheck:
    """Finds the mistakes in one text. An anchor is checked only once."""

    file: str
    visited: set[int] = field(default_factory=set)  # These are the ids of the maps and lists that were checked.

    def mistakes(self, node: yaml.Node | None, path: KeyPath, outer: tuple[int, ...] = ()) -> Iterator[Mistake]:
        """Yield the mistakes in the node at `path`. `outer` contains the ids of the maps and lists around the node."""
        if isinstance(node, yaml.ScalarNode):
            schema = schema_at(path)
            if _is_misread(node, types_of(schema)):
                yield Mistake(path, _misread_value(node, schema), file=self.file)
        elif id(node) in outer:
            message = "a map or list that contains itself is not allowed. Allowed: an alias (*name) outside of the anchor (&name)"
            yield Loop(path, message, file=self.file)
        elif node is not None and id(node) not in self.visited:
            self.visited.add(id(node))
            outer = (*outer, id(node))
            if isinstance(node, yaml.MappingNode):
                yield from self._mistakes_of_map(node, path, outer)
            else:
                for number, inner in enumerate(node.value):
                    yield from self.mistakes(inner, (*path, number), outer)

    def _mistakes_of_map(self, node: yaml.MappingNode, path: KeyPath, outer: tuple[int, ...]) -> Iterator[Mistake]:
        """Yield the mistakes in the keys and values of a map. YAML silently uses only the last value of a key that stands twice."""
        for _, merged in (pair for pair in node.value if pair[0].tag == _MERGE):
            yield from self.mistakes(merged, path, outer)
        pairs = [(_loaded(key), key, inner) for key, inner in node.value if key.tag != _MERGE]
        keys = [key for key, _, _ in pairs]
        for number, (key, key_node, inner) in enumerate(pairs):
            if keys.count(key) > 1 and keys.index(key) == number:
                message = (
                    f"stands twice in one map (line {node.start_mark.line + 1} and after), and the second would silently replace the"
                    " first. Allowed: each name once, so that no two sweeps write to one folder"
                )
                yield Mistake((*path, key), message, file=self.file)
            if isinstance(key_node, yaml.ScalarNode) and _is_misread(key_node, []):
                message = f"the key {_misread_as(key_node)} Write '{key_node.value}' with the quotes"
                yield Mistake((*path, key), message, file=self.file)
            yield from self.mistakes(inner, (*path, key), outer)
