"""The few loops that no library has, compiled by numba when they are first called.

The machine code is kept beside the package, or in the user's cache folder, so that the next process only loads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Loop = TypeVar("Loop", bound=Callable[..., Any])


def compiled(loop: Loop) -> Loop:
    """Compile a function of arrays and numbers, without fast-math: the same input gives the same bits everywhere."""
    try:
        return numba.njit(loop, cache=True)  # type: ignore[no-any-return]
    except RuntimeError:
        # Neither the package's folder nor the user's can be written: every process compiles anew, for some seconds.
        return numba.njit(loop)  # type: ignore[no-any-return]
