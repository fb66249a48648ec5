"""Files by path or URI: a stand-in for the lead's module of this name, with what the audit calls of it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path


def is_uri(path: str) -> bool:
    """Whether it names its storage, as ``s3://bucket/prefix`` does."""
    return "://" in path


def join(folder: str, name: str) -> str:
    """Path of ``name`` below a folder."""
    return f"{folder.rstrip('/')}/{name}"


def reason(error: Exception) -> str:
    """What went wrong, without the text of the error, which may quote the whole URI."""
    return f"{type(error).__name__}: {os.strerror(error.errno)}" if isinstance(error, OSError) and error.errno else "?"


def read(path: str, size: int | None = None) -> bytes:
    """The first ``size`` bytes of a file, or all."""
    with Path(path).open("rb") as file:
        return file.read(-1 if size is None else size)


def content(path: str) -> bytes | memoryview:
    """A whole file, mapped."""
    with Path(path).open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
