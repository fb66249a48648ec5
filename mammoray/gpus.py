"""Whether GPUs compute: a small product on each."""

from __future__ import annotations

import torch

_SIZE = 256


def multiply(device: str) -> str:
    """Multiply two matrices on a device of torch; returns what is wrong, or "".

    Examples
    --------
    >>> multiply("cpu")
    ''
    """
    try:
        a_NN = torch.eye(_SIZE, device=device) * 2
        product_NN = (a_NN @ a_NN).cpu()
    except (RuntimeError, AssertionError) as error:  # The second of a torch that knows no GPUs at all.
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return "" if torch.equal(product_NN, torch.eye(_SIZE) * 4) else "a wrong product"


def multiply_on_all() -> list[str]:
    """What is wrong with the GPUs that Ray has reserved for this process; nothing where all compute."""
    if not torch.cuda.is_available():
        return ["torch finds none: it is built without CUDA, or the driver is too old for it"]
    found = [(i, multiply(f"cuda:{i}")) for i in range(torch.cuda.device_count())]
    return [f"{torch.cuda.get_device_name(i)}: {problem}" for i, problem in found if problem]
