"""Checks of settings, for the dataclasses of :mod:`mammoray.recipe` and :mod:`mammoray.config`."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mammoray.errors import ConfigError


def require(ok: bool, name: str, expected: str, found: object) -> None:
    """Refuse the value ``found`` of the field ``name`` unless ``ok``.

    Raises
    ------
    ConfigError
    """
    if not ok:
        flag = "--" + name.replace("_", "-")
        raise ConfigError(flag, expected, repr(found), f"Change {flag}, or {name} in the config file.")


def require_choices(section: Any) -> None:
    """Check every ``Literal`` field of ``section``: dataclasses do not, and a TOML file can hold anything."""
    for name, hint in get_type_hints(type(section)).items():
        several = get_origin(hint) is tuple
        choices_of = get_args(hint)[0] if several else hint
        if get_origin(choices_of) is not Literal:
            continue
        choices, value = get_args(choices_of), getattr(section, name)
        for one in value if several and isinstance(value, tuple) else (value,):
            ok = one in choices and not isinstance(one, bool)
            require(ok, name, f"one of {', '.join(map(repr, choices))}", one)


def require_range(section: Any, names: str, low: float, below: float = math.inf) -> None:
    """Check that the fields ``names``, separated by blanks, are at least ``low`` and below ``below``."""
    expected = f"{low:g} or more" + ("" if math.isinf(below) else f", and below {below:g}")
    for name in names.split():
        value = getattr(section, name)
        require(low <= value < below, name, expected, value)


def require_no_secret(uri: str, flag: str) -> None:
    """Refuse a URI with a password or a key in it: settings are written down and shown.

    Raises
    ------
    ConfigError
        Without the URI.
    """
    head, _, query = uri.partition("?")
    user = head.partition("://")[2].partition("/")[0].rpartition("@")[0]
    keys = [part.partition("=")[0] for part in query.split("&")] if "://" in head else []
    if ":" in user or any(re.search("sig|secret|token|passw|credential|access_?key", key, re.I) for key in keys):
        remedy = "Set them in the environment (such as AWS_ACCESS_KEY_ID), or give the machines a role."
        raise ConfigError(flag, "a URI without credentials", "some in it", remedy)
