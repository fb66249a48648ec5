from __future__ import annotations

import torch

from mammoray import gpus


def test_a_device_that_computes_is_well_and_one_that_is_not_there_says_so() -> None:
    assert gpus.multiply("cpu") == ""
    assert gpus.multiply(f"cuda:{torch.cuda.device_count()}") != ""


def test_no_gpu_is_a_problem_where_some_were_reserved() -> None:
    assert bool(gpus.multiply_on_all()) == (not torch.cuda.is_available())
