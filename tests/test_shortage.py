import errno
from pathlib import Path

import pytest
import torch

from mammoray import shortage


def test_an_allocation_that_fails_is_told_as_memory_with_the_settings_that_save_it() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)  # A real refusal of the allocator.
    assert shortage.is_memory(caught.value)
    told = str(shortage.of_memory(caught.value))
    for flag in ("--accumulate", "--grad-checkpointing", "--precision bf16", "--batch-size"):
        assert flag in told
    assert shortage.is_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"))
    assert not shortage.is_memory(RuntimeError("shapes cannot be multiplied"))


def test_a_full_disk_is_called_one_and_another_error_by_its_name() -> None:
    with pytest.raises(OSError) as full, Path("/dev/full").open("w") as file:
        file.write("x")  # A real refusal of the kernel.
    assert full.value.errno == errno.ENOSPC
    assert "found a full disk" in str(shortage.of_disk(full.value, "run"))
    with pytest.raises(OSError) as missing:
        Path("/dev/full/x").touch()
    assert "NotADirectoryError" in str(shortage.of_disk(missing.value, "run"))
