"""Settings as plain values: dictionaries, TOML, and the digest by which equal ones are known."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tomli_w

from mammoray.config import Config
from mammoray.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) is not None}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def to_dict(section: Any) -> dict[str, Any]:
    """Nested plain dictionary of a config dataclass; ``None`` is left out (TOML has none), paths become strings."""
    plain: dict[str, Any] = _plain(section)
    return plain


def from_dict(cls: type[T], values: dict[str, Any], where: str = "config") -> T:
    """Build a config dataclass from :func:`to_dict`'s form; what is missing keeps its default.

    Raises
    ------
    ConfigError
        For a key that the class does not have, or a value of another type.
    """
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(where, f"keys among {', '.join(hints)}", ", ".join(unknown), "Correct or remove these keys.")
    return cls(**{name: _typed(hints[name], value, f"{where}: {name}") for name, value in values.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise ConfigError(where, "a table of settings", repr(value), "Write it as a [section].")
        return from_dict(hint, value, where)
    options = [o for o in get_args(hint) if o is not type(None)] if get_origin(hint) not in (Literal, tuple) else []
    wanted = options[0] if options else hint
    if get_origin(wanted) is tuple and isinstance(value, (list, tuple)):
        return tuple(_typed(get_args(wanted)[0], one, where) for one in value)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kind = get_origin(wanted) if get_origin(wanted) is tuple else wanted
    if isinstance(kind, type) and type(value) is not kind:
        name = "list" if kind is tuple else kind.__name__
        raise ConfigError(where, f"a value of type {name}", repr(value), "Correct the value.")
    return value


def load_toml(path: Path) -> Config:
    """Read a :class:`Config` from a TOML file, such as the config.toml of an earlier run."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        found = "no file" if isinstance(error, FileNotFoundError) else type(error).__name__
        raise ConfigError(str(path), "a TOML file of settings", found, "Check --config.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), "a TOML file of settings", str(error), "Correct the file.") from error
    return from_dict(Config, values, str(path))


def to_toml(config: Config) -> str:
    """TOML text of a config; :func:`load_toml` reads it back to an equal one."""
    return tomli_w.dumps(to_dict(config))


def digest(*parts: Any) -> str:
    """SHA-256, as 16 hex digits, of the canonical JSON of ``parts`` (config dataclasses, strings, numbers, lists).

    Of settings and runs; a split and a file have digests of their own, over their lines.

    Examples
    --------
    >>> digest(Config()) == digest(Config(seed=0))
    True
    """
    canonical = json.dumps([_plain(part) for part in parts], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def replace(section: T, **changes: Any) -> T:
    """A copy of a config dataclass with some fields changed, checked again."""
    return dataclasses.replace(section, **changes)  # type: ignore[type-var]
