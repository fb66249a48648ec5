import numpy as np
import numpy.typing as npt

from mammoray.compiled import compiled


def test_a_loop_gives_what_python_gives() -> None:
    def total(values: npt.NDArray[np.float64]) -> float:
        result = 0.0
        for value in values:
            result += value
        return result

    values = np.random.default_rng(0).random(1000)
    assert compiled(total)(values) == total(values)


def test_where_no_cache_can_be_written_it_compiles_anyway() -> None:
    scope: dict[str, object] = {"compiled": compiled}
    # No file, hence no place for a cache: numba's error is that of a folder without write permission.
    exec("@compiled\ndef double(x):\n    return 2 * x", scope)
    assert scope["double"](21) == 42  # type: ignore[operator]
