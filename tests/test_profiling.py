import json
from pathlib import Path

import pytest
import torch

from mammoray import profiling


@pytest.mark.parametrize("steps", [2, 3, 12])
def test_the_operators_of_some_steps_are_written_down(tmp_path: Path, steps: int) -> None:
    with profiling.profiled(str(tmp_path / "profile"), steps) as tick:
        for _ in range(steps):
            torch.rand(50, 50) @ torch.rand(50, 50)
            tick()
    assert "aten::mm" in (tmp_path / "profile" / "operators.txt").read_text()
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    with profiling.profiled(None, 5) as tick:
        tick()
    assert list(tmp_path.iterdir()) == []
