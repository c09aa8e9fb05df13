"""Where settings come from: ini, a YAML file, or keyword arguments, all laid out flat under dotted keys."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import yaml

from pyramid_threaded_proxy.settings.values import YamlScalar

INI = "the ini settings"

# No key is that deep. The bound also ends mappings that hold themselves.
_DEEPEST = 8
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 200
_SECRET = re.compile(
    r"\.(?:set|add|default)\..*(?:auth|cookie|token|secret|password|key)|(?:accel|verify)\.secret"
    r"|proxy\.shared(?:\.|$)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One value under its full dotted key, and where it was written."""

    key: str
    value: object
    origin: str

    def fault(self, problem: str, allowed: str = "") -> str:
        """One line for a `SettingsError`."""
        return f"{self.key} = {self._shown()} ({self.origin}): {problem}{'; allowed: ' if allowed else ''}{allowed}"

    def _shown(self) -> str:
        """The value without secrets: errors end up in logs."""
        if _SECRET.search(self.key):
            return "(hidden)"
        try:
            shown = " ".join(_repr.repr(self.value).split())
        except Exception:  # A foreign object's own __repr__, or a number too long to print.
            shown = f"<{type(self.value).__name__}>"
        return re.sub(r"//[^/@]*@", "//***@", shown)


def ini_entries(settings: Mapping[str, object]) -> Iterator[Entry]:
    """What Pyramid's settings hold under ``proxy.``; a mapping that was put there in Python counts as its keys."""
    for key, value in settings.items():
        if isinstance(key, str) and key.startswith("proxy."):
            yield from mapping_entries(key, value, INI)


def mapping_entries(key: str, value: object, origin: str, depth: int = 0) -> Iterator[Entry]:
    """One entry for each value in nested mappings; an empty mapping, or one with keys that are not text, is a value."""
    if isinstance(value, Mapping) and value and depth < _DEEPEST and all(isinstance(name, str) for name in value):
        for name, inner in value.items():
            yield from mapping_entries(f"{key}.{name}", inner, origin, depth + 1)
    else:
        yield Entry(key, value, origin)


class YamlFile:
    """One YAML file: `entries` are its values, `faults` is what is wrong with its form."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.faults: list[str] = []
        self._seen: set[int] = set()
        try:
            with open(path, "rb") as stream:
                root = yaml.compose(stream, yaml.SafeLoader)
            if root is not None:
                self._root(root)
        except (OSError, ValueError) as error:
            self.faults.append(f"proxy.file = {path!r} ({INI}): can't be read: {error}")
        except yaml.YAMLError as error:
            self.faults.append(f"proxy ({path}): is not YAML: {' '.join(str(error).split())}")
        except RecursionError:
            self.faults.append(f"proxy ({path}): nests too deep, or a part of it holds itself")

    def _root(self, root: yaml.Node) -> None:
        if isinstance(root, yaml.MappingNode):
            self.entries.extend(entry for entry in self._walk("proxy", root, 0) if entry.key != "proxy")
        else:
            self.faults.append(f"proxy ({self._origin(root)}): must be a mapping")

    def _origin(self, node: yaml.Node) -> str:
        return f"{self.path}, line {node.start_mark.line + 1}"

    def _walk(self, key: str, node: yaml.Node, depth: int) -> Iterator[Entry]:
        pairs = self._pairs(key, node) if isinstance(node, yaml.MappingNode) and depth < _DEEPEST else {}
        for name, inner in pairs.items():
            yield from self._walk(f"{key}.{name}", inner, depth + 1)
        if not pairs:
            yield Entry(key, _value(node), self._origin(node))

    def _pairs(self, key: str, node: yaml.MappingNode) -> dict[str, yaml.Node]:
        """A mapping's keys and values, with what ``<<`` merges into it; a key of its own wins over a merged one."""
        # An alias comes here again, after its merge keys were resolved.
        if id(node) not in self._seen:
            self._seen.add(id(node))
            self._check_repeated(key, node)
            yaml.SafeLoader("").flatten_mapping(node)
            self._check_text(key, node)
        return {name.value: inner for name, inner in node.value if _is_text(name)}

    def _check_repeated(self, key: str, node: yaml.MappingNode) -> None:
        first: dict[str, int] = {}
        for name, _ in node.value:
            line = name.start_mark.line + 1
            if _is_text(name) and first.setdefault(name.value, id(name)) != id(name):
                self.faults.append(f"{key}.{name.value} ({self.path}, line {line}): is a repeated key")

    def _check_text(self, key: str, node: yaml.MappingNode) -> None:
        for name, _ in node.value:
            if not _is_text(name):
                found = _value(name)
                problem = found.misread() if isinstance(found, YamlScalar) else "must be text"
                self.faults.append(f"{key} ({self._origin(name)}): a key in it: {problem}")


def _is_text(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str"


def _value(node: yaml.Node) -> object:
    if isinstance(node, yaml.ScalarNode):
        return node.value if _is_text(node) else _scalar(node)
    if isinstance(node, yaml.SequenceNode):
        # No setting takes a list of lists.
        return [_value(item) if isinstance(item, yaml.ScalarNode) else {} for item in node.value]
    return {}


def _scalar(node: yaml.ScalarNode) -> YamlScalar:
    written, kind = node.value, node.tag.removeprefix("tag:yaml.org,2002:")
    if kind == "bool" and written.lower() in yaml.SafeLoader.bool_values:
        value = yaml.SafeLoader.bool_values[written.lower()]
        return YamlScalar(written, value, str(value).lower())
    # Only numbers that mean what they look like: not 010 (8), 0x10, 1_000 or 1:30 (90).
    if kind == "int" and re.fullmatch(r"[-+]?(0|[1-9][0-9]{0,17})", written):
        return YamlScalar(written, int(written), "a number")
    if kind == "float" and re.fullmatch(r"[-+]?[0-9]{1,12}\.[0-9]{1,12}", written):
        return YamlScalar(written, float(written), "a number")
    names = {"int": "another number", "float": "another number", "null": "nothing", "timestamp": "a date"}
    return YamlScalar(written, None, names.get(kind, kind))
