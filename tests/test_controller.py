import subprocess
import sys
from pathlib import Path

import pytest

from mammoray import controller
from mammoray.records import History


@pytest.mark.parametrize("module", ["controller", "batches", "board"])
def test_what_the_controller_of_ray_train_loads_leaves_the_networks_code_alone(module: str) -> None:
    script = f"import sys, mammoray.{module}; print({{'torch', 'timm'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_history_is_read_as_it_was_written_and_is_empty_where_there_is_none(tmp_path: Path) -> None:
    assert controller.read_history(tmp_path) == []
    history: History = [{"epoch": 0, "train_loss": None}, {"epoch": 1, "train_loss": 0.1 + 0.2}]
    controller.write_history(tmp_path, history)
    assert controller.read_history(tmp_path) == history
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]
