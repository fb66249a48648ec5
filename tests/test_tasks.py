import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch

from mammoray import catalog, tasks
from mammoray.errors import ConfigError
from mammoray.recipe import Auxiliary
from tests import trees

TASKS: tuple[str, ...] = get_args(Auxiliary)
every_task = pytest.mark.parametrize("task", TASKS)


def read(task: str, cells: list[Any]) -> list[float]:
    found: list[float] = tasks.targets(pd.DataFrame({task: cells}), (task,))[task].tolist()
    return found


def some(task: str, missing: tuple[int, ...] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Six outputs of a head, and targets of which the given ones are not known."""
    outputs = torch.randn(6, tasks.outputs(task), generator=torch.Generator().manual_seed(1))
    if task == "age":
        target = torch.tensor([0.0, 1.0, -1.0, 3.0, 0.5, -0.2])
        target[list(missing)] = math.nan
    else:
        target = torch.arange(6) % tasks.outputs(task)
        target[list(missing)] = tasks.MISSING
    return outputs, target


class TestTargets:
    def test_views_are_two_standard_ones_and_any_other(self) -> None:
        cells = ["CC", "MLO", "ML", "LMO", "AT", " cc ", "mlo", "", None, "  "]
        assert read("view", cells) == [0, 1, 2, 2, 2, 0, 1, -1, -1, -1]

    def test_sides_are_left_and_right_and_else_not_known(self) -> None:
        assert read("laterality", ["L", "R", "l", "right", "B", "", pd.NA]) == [0, 1, 0, 1, -1, -1, -1]

    def test_ages_are_numbers_in_units_of_15_years_around_55(self) -> None:
        cells = ["55", "70.0", " 40 ", 62.5, 18, 120]
        assert read("age", cells) == pytest.approx([0, 1, -1, 0.5, -37 / 15, 65 / 15])

    @pytest.mark.parametrize("cell", ["", None, math.nan, "17.9", "121", "999", "0", "-50", "inf", "sixty", "061Y"])
    def test_an_age_that_cannot_be_one_is_not_known(self, cell: Any) -> None:
        assert np.isnan(read("age", ["55", cell])).tolist() == [False, True]

    def test_a_catalog_has_what_is_needed(self, tmp_path: Path) -> None:
        rows = catalog.build(None, trees.rsna(tmp_path)).rows
        found = tasks.targets(rows, TASKS)
        assert {name: str(values.dtype) for name, values in found.items()} == {
            "view": "int64",
            "laterality": "int64",
            "age": "float32",
        }
        assert found["view"].tolist() == [0, 1, 0, 0]
        assert found["laterality"].tolist() == [0, 1, 0, 0]
        np.testing.assert_allclose(found["age"], [0.4, 0.4, -1 / 3, np.nan], rtol=1e-6)

    def test_only_what_was_asked_for_is_read(self) -> None:
        assert list(tasks.targets(pd.DataFrame({"view": ["CC"]}), ("view",))) == ["view"]
        assert tasks.targets(pd.DataFrame({"view": ["CC"]}), ()) == {}

    @every_task
    @pytest.mark.parametrize("cells", [None, ["", " "], [pd.NA, None]])
    def test_a_task_without_any_target_is_an_error_that_names_the_flag(self, task: str, cells: Any) -> None:
        rows = pd.DataFrame({"image_id": ["1", "2"], **({} if cells is None else {task: cells})})
        with pytest.raises(ConfigError, match=rf"--auxiliary {task}: .*none in 2 rows.*a column {task}\."):
            tasks.check(rows, (task,))

    def test_the_error_tells_nobodys_age(self) -> None:
        with pytest.raises(ConfigError) as caught:
            tasks.check(pd.DataFrame({"age": ["777", "3"]}), ("age",))
        assert "777" not in str(caught.value)


class TestFlipped:
    def test_mirrored_images_change_sides_and_unknown_ones_stay_unknown(self) -> None:
        values, mirrored = torch.tensor([0, 1, -1, 0, 1, -1]), torch.tensor([True] * 3 + [False] * 3)
        once = tasks.flipped("laterality", values, mirrored)
        assert once.tolist() == [1, 0, -1, 0, 1, -1]
        assert once.dtype == torch.int64
        assert torch.equal(tasks.flipped("laterality", once, mirrored), values)

    @pytest.mark.parametrize("task", ["view", "age"])
    def test_a_mirror_changes_neither_view_nor_age(self, task: str) -> None:
        _, target = some(task)
        assert torch.equal(tasks.flipped(task, target, torch.ones(6, dtype=torch.bool)), target)


class TestPerImage:
    def test_classes_cost_their_cross_entropy(self) -> None:
        outputs = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
        found = tasks.per_image("laterality", outputs, torch.tensor([0, 1]))
        assert found.tolist() == pytest.approx([-math.log(0.75), -math.log(0.25)])

    def test_ages_cost_the_square_of_small_errors_and_the_size_of_large_ones(self) -> None:
        found = tasks.per_image("age", torch.tensor([[0.4], [0.0], [0.0]]), torch.tensor([0.0, -3.0, 1.0]))
        assert found.tolist() == pytest.approx([0.08, 2.5, 0.5])

    @every_task
    def test_an_unknown_target_costs_nothing_and_leaves_the_others_alone(self, task: str) -> None:
        outputs, target = some(task, missing=(1, 4))
        found = tasks.per_image(task, outputs, target)
        whole = tasks.per_image(task, *some(task))
        assert found[[1, 4]].tolist() == [0, 0]
        assert torch.equal(found[[0, 2, 3, 5]], whole[[0, 2, 3, 5]])

    @every_task
    @pytest.mark.parametrize("missing", [(1, 4), tuple(range(6))])
    def test_an_unknown_target_gives_a_gradient_of_zero(self, task: str, missing: tuple[int, ...]) -> None:
        outputs, target = some(task, missing)
        outputs.requires_grad_()
        (slope,) = torch.autograd.grad(tasks.per_image(task, outputs, target).mean(), outputs)
        assert torch.isfinite(slope).all()
        without = slope.abs().sum(dim=1) == 0
        assert without.nonzero()[:, 0].tolist() == list(missing)

    @every_task
    def test_half_precision_is_taken_to_float32(self, task: str) -> None:
        outputs, target = some(task)
        found = tasks.per_image(task, outputs.bfloat16(), target)
        assert found.dtype == torch.float32
        assert torch.equal(found, tasks.per_image(task, outputs.bfloat16().float(), target))


class TestMetrics:
    def test_accuracy_is_over_known_targets(self) -> None:
        outputs = np.array([[9, 0, 0], [9, 0, 0], [0, 0, 9], [0, 9, 0]], dtype=np.float32)
        assert tasks.metrics("view", outputs, np.array([0, 1, 2, -1])) == {"view_accuracy": pytest.approx(2 / 3)}
        assert tasks.metrics("laterality", outputs[:2, :2], np.array([0, 0])) == {"laterality_accuracy": 1.0}

    def test_the_error_of_ages_is_in_years_and_over_known_ones(self) -> None:
        cells = [50, 60, ""]
        targets = tasks.targets(pd.DataFrame({"age": cells}), ("age",))["age"]
        said = np.array([[-0.2], [2 / 15], [35 / 15]], dtype=np.float32)
        assert tasks.metrics("age", said, targets) == {"age_mae": pytest.approx(2.5, rel=1e-5)}

    @every_task
    def test_a_perfect_head_is_told_so_and_nothing_known_is_none(self, task: str) -> None:
        _, target = some(task)
        values = target.numpy()
        perfect: tasks.Floats = (
            values[:, None] if task == "age" else np.eye(tasks.outputs(task), dtype=np.float32)[values]
        )
        best = 0.0 if task == "age" else 1.0
        assert list(tasks.metrics(task, perfect, values).values()) == [best]
        _, unknown = some(task, missing=tuple(range(6)))
        assert list(tasks.metrics(task, perfect, unknown.numpy()).values()) == [None]
