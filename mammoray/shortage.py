"""What to tell when memory or the disk is too small for a training, and how such an error is known."""

from __future__ import annotations

import errno

from mammoray import storage
from mammoray.errors import TrainError

LESS_MEMORY = (
    "Use --accumulate 2 or more, which gives the same result in less memory, --grad-checkpointing, "
    "--precision bf16, a smaller --batch-size or --height and --width, or more --num-workers."
)
_NO_MEMORY = (
    "out of memory",  # torch.OutOfMemoryError, on a GPU.
    "can't allocate memory",  # torch on a CPU, a RuntimeError.
    "not enough memory",  # The same on Windows.
    "running low on memory",  # Ray's memory monitor, which kills workers.
)


def is_memory(error: BaseException) -> bool:
    """Whether an error, of this process or told by Ray of another, comes from memory that is short.

    Examples
    --------
    >>> is_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."))
    True
    >>> is_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False
    """
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)


def of_memory(error: BaseException) -> TrainError:
    """What to tell of a step that did not fit into memory."""
    line = next((line for line in str(error).splitlines() if is_memory(RuntimeError(line))), str(error))
    return TrainError("a training step", "enough memory", f"{type(error).__name__}: {line.strip()[:200]}", LESS_MEMORY)


def of_disk(error: OSError, where: str) -> TrainError:
    """What to tell of a checkpoint that could not be written to ``where``."""
    if storage.is_silent(error):
        remedy = "Check --storage; the same command then goes on from the last checkpoint."
        return TrainError(f"a checkpoint in {where}", "storage that answers", storage.reason(error), remedy)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    found = "a full disk" if full else f"{type(error).__name__}: {error}"
    remedy = (
        "Make room there and in the folder of temporary files, or keep fewer checkpoints (--keep); "
        "the same command then goes on from the last checkpoint."
    )
    return TrainError(f"a checkpoint in {where}", "a folder that can be written", found, remedy)
