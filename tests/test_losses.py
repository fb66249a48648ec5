import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from mammoray import losses
from mammoray.recipe import LossConfig

LOSSES = ("cross_entropy", "focal", "corn", "coral")
ORDINAL = ("corn", "coral")
every_loss = pytest.mark.parametrize("loss", LOSSES)
two_and_four = pytest.mark.parametrize("classes", [2, 4])


def config(loss: Any = "cross_entropy", **settings: Any) -> LossConfig:
    return LossConfig(loss=loss, **settings)


def drawn(loss: str, classes: int, images: int = 12, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs, in the order of their thresholds for coral as a trained layer has them, and labels of every class."""
    generator = torch.Generator().manual_seed(classes)
    outputs = scale * torch.randn(images, losses.outputs(loss, classes), generator=generator)
    if loss == "coral":
        outputs = outputs.sort(dim=1, descending=True).values
    return outputs, torch.arange(images) % classes


def hard(label: int, classes: int = 4) -> torch.Tensor:
    return losses.targets(torch.tensor([label]), classes, config())


def soft(images: int, classes: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(images)
    return torch.softmax(torch.randn(images, classes, generator=generator), dim=1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class TestTargets:
    def test_hard_labels_are_one_hot(self) -> None:
        assert losses.targets(torch.tensor([2, 0]), 3, config()).tolist() == [[0, 0, 1], [1, 0, 0]]

    def test_a_gaussian_of_half_a_class_leaves_what_the_help_says(self) -> None:
        rows = losses.targets(torch.arange(4), 4, config(soft_labels=0.5))
        assert [round(rows[k, k].item(), 2) for k in range(4)] == [0.88, 0.79, 0.79, 0.88]

    def test_soft_labels_are_a_gaussian_over_class_numbers(self) -> None:
        row = losses.targets(torch.tensor([1]), 4, config(soft_labels=0.8))[0].double().numpy()
        density = np.exp(-((np.arange(4) - 1) ** 2) / (2 * 0.8**2))
        np.testing.assert_allclose(row, density / density.sum(), rtol=1e-5)

    @pytest.mark.parametrize("width", [1e-320, 1e-9, 0.01])
    def test_a_narrow_gaussian_is_a_hard_label(self, width: float) -> None:
        labels = torch.tensor([0, 3, 1])
        narrow = losses.targets(labels, 4, config(soft_labels=width))
        assert torch.equal(narrow, losses.targets(labels, 4, config()))

    def test_smoothing_is_spread_over_all_classes_after_the_gaussian(self) -> None:
        labels = torch.arange(4)
        both = losses.targets(labels, 4, config(soft_labels=0.7, label_smoothing=0.2))
        torch.testing.assert_close(both, 0.8 * losses.targets(labels, 4, config(soft_labels=0.7)) + 0.05)

    @two_and_four
    @pytest.mark.parametrize("settings", [{}, {"soft_labels": 0.6}, {"label_smoothing": 0.3, "soft_labels": 2.0}])
    def test_rows_are_distributions_whose_mode_is_the_label(self, classes: int, settings: dict[str, float]) -> None:
        rows = losses.targets(torch.arange(classes), classes, config(**settings))
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.sum(dim=1), torch.ones(classes))
        assert rows.argmax(dim=1).tolist() == list(range(classes))


class TestSoftmaxLosses:
    @two_and_four
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_cross_entropy_and_its_smoothing_are_those_of_torch(self, classes: int, smoothing: float) -> None:
        outputs, labels = drawn("cross_entropy", classes)
        settings = config(label_smoothing=smoothing)
        ours = losses.per_image(outputs, losses.targets(labels, classes, settings), settings)
        theirs = functional.cross_entropy(outputs, labels, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(ours, theirs)

    def test_weights_of_hard_labels_are_those_of_torch(self) -> None:
        outputs, labels = drawn("cross_entropy", 4)
        weights = torch.tensor([0.5, 1.0, 2.0, 0.0])
        ours = losses.per_image(outputs, losses.targets(labels, 4, config()), config(), weights)
        torch.testing.assert_close(ours, functional.cross_entropy(outputs, labels, weights, reduction="none"))

    def test_with_smoothing_the_image_is_weighted_and_not_each_term_as_torch_does(self) -> None:
        outputs, weights = torch.tensor([[math.log(3), 0.0]]), torch.tensor([1.0, 3.0])
        settings = config(label_smoothing=0.5)
        ours = losses.per_image(outputs, losses.targets(torch.tensor([0]), 2, settings), settings, weights)
        p, t = (0.75, 0.25), (0.75, 0.25)
        entropy = -sum(share * math.log(q) for share, q in zip(t, p, strict=True))
        assert ours.item() == pytest.approx((0.75 * 1 + 0.25 * 3) * entropy)
        theirs = functional.cross_entropy(outputs, torch.tensor([0]), weights, label_smoothing=0.5, reduction="none")
        assert theirs.item() == pytest.approx(-(0.75 * 1 * math.log(0.75) + 0.25 * 3 * math.log(0.25)))

    @two_and_four
    def test_focal_without_gamma_is_cross_entropy_to_the_bit(self, classes: int) -> None:
        outputs, _ = drawn("focal", classes)
        target = soft(len(outputs), classes)
        focal = losses.per_image(outputs, target, config("focal", focal_gamma=0.0))
        assert torch.equal(focal, losses.per_image(outputs, target, config()))

    def test_focal_is_what_the_paper_says(self) -> None:
        outputs = torch.tensor([[math.log(3), 0.0]])  # Probabilities 3/4 and 1/4.
        settings = config("focal", focal_gamma=2.0)
        assert losses.per_image(outputs, hard(0, 2), settings).item() == pytest.approx(-(0.25**2) * math.log(0.75))
        mixed = losses.per_image(outputs, torch.tensor([[0.6, 0.4]]), settings).item()
        assert mixed == pytest.approx(-0.6 * 0.25**2 * math.log(0.75) - 0.4 * 0.75**2 * math.log(0.25))

    @pytest.mark.parametrize("gamma", [0.3, 1.0, 5.0])
    def test_focal_has_a_gradient_where_an_image_is_certain(self, gamma: float) -> None:
        outputs = torch.tensor([[80.0, 0.0], [0.0, 1e4]], requires_grad=True)
        values = losses.per_image(outputs, hard(0, 2).expand(2, 2), config("focal", focal_gamma=gamma))
        (slope,) = torch.autograd.grad(values.sum(), outputs)
        assert torch.isfinite(slope).all()
        assert slope[0].abs().max() < 1e-6
        assert slope[1].tolist() == pytest.approx([-1.0, 1.0])


def corn_of_one(outputs: list[float], label: int) -> float:
    """CORN of one image by its definition: threshold k is asked of those only that are above class k - 1."""
    total = 0.0
    for k, output in enumerate(outputs):
        if label >= k:
            total -= math.log(sigmoid(output) if label > k else 1 - sigmoid(output))
    return total / len(outputs)


def coral_of_one(outputs: list[float], label: int) -> float:
    """CORAL of one image by its definition: every threshold is asked of all."""
    total = sum(-math.log(sigmoid(output) if label > k else 1 - sigmoid(output)) for k, output in enumerate(outputs))
    return total / len(outputs)


PLAIN = {"corn": corn_of_one, "coral": coral_of_one}


class TestOrdinalLosses:
    @two_and_four
    @pytest.mark.parametrize("loss", ORDINAL)
    def test_hard_labels_give_the_papers_loss(self, loss: str, classes: int) -> None:
        outputs, labels = drawn(loss, classes)
        ours = losses.per_image(outputs, losses.targets(labels, classes, config(loss)), config(loss))
        plain = [PLAIN[loss](row, label) for row, label in zip(outputs.tolist(), labels.tolist(), strict=True)]
        assert ours.tolist() == pytest.approx(plain, rel=1e-5)

    @pytest.mark.parametrize("loss", ORDINAL)
    def test_a_soft_target_costs_the_mean_over_the_classes_that_it_may_be(self, loss: str) -> None:
        outputs, _ = drawn(loss, 4)
        target = soft(len(outputs), 4)
        of_each = torch.stack(
            [losses.per_image(outputs, hard(k).expand_as(target), config(loss)) for k in range(4)], dim=1
        )
        torch.testing.assert_close(losses.per_image(outputs, target, config(loss)), (target * of_each).sum(dim=1))

    @pytest.mark.parametrize("loss", ORDINAL)
    def test_two_classes_are_binary_cross_entropy(self, loss: str) -> None:
        outputs, labels = drawn(loss, 2)
        ours = losses.per_image(outputs, losses.targets(labels, 2, config(loss)), config(loss))
        theirs = functional.binary_cross_entropy_with_logits(outputs[:, 0], labels.float(), reduction="none")
        torch.testing.assert_close(ours, theirs)

    def test_corn_at_its_outputs_is_the_entropy_of_the_class_over_the_thresholds(self) -> None:
        outputs, labels = drawn("corn", 4)
        ours = losses.per_image(outputs, losses.targets(labels, 4, config("corn")), config("corn"))
        log_p = losses.log_probabilities(outputs, "corn")
        torch.testing.assert_close(ours, -log_p[torch.arange(len(labels)), labels] / 3)

    @pytest.mark.parametrize(
        ("loss", "output", "truth"),
        [("coral", -5.0, [0, 1, 2, 3]), ("coral", 5.0, [3, 2, 1, 0]), ("corn", -5.0, [0, 1, 2, 3])],
    )
    def test_far_errors_cost_more_than_near_ones(self, loss: str, output: float, truth: list[int]) -> None:
        outputs = torch.full((1, 3), output)
        costs = [losses.per_image(outputs, hard(label), config(loss)).item() for label in truth]
        assert all(far > near + 1 for near, far in pairwise(costs))

    def test_corn_counts_one_threshold_of_an_image_that_is_called_too_dense(self) -> None:
        costs = [losses.per_image(torch.full((1, 3), 5.0), hard(k), config("corn")).item() for k in range(4)]
        assert costs[:3] == pytest.approx([5 / 3] * 3, rel=0.01)
        assert costs[3] < 0.01


class TestEveryLoss:
    @every_loss
    @two_and_four
    def test_the_gradient_is_that_of_finite_differences(self, loss: str, classes: int) -> None:
        outputs, _ = drawn(loss, classes, images=4, scale=1.0)
        target = soft(4, classes)
        weights = torch.linspace(0.5, 2.0, classes)
        outputs.requires_grad_()
        (slope,) = torch.autograd.grad(losses.per_image(outputs, target, config(loss), weights).sum(), outputs)
        step = 1e-2
        for j in range(outputs.shape[1]):
            moved = torch.zeros_like(outputs)
            moved[:, j] = step
            up, down = (
                losses.per_image((outputs + m).detach(), target, config(loss), weights) for m in (moved, -moved)
            )
            torch.testing.assert_close(slope[:, j], (up - down) / (2 * step), rtol=2e-3, atol=2e-3)

    @every_loss
    @two_and_four
    def test_huge_outputs_give_finite_values_and_gradients(self, loss: str, classes: int) -> None:
        size = losses.outputs(loss, classes)
        signs = torch.cartesian_prod(*[torch.tensor([-1e4, 0.0, 1e4])] * size).reshape(-1, size)
        settings = config(loss, label_smoothing=0.1)
        for label in range(classes):
            outputs = signs.clone().requires_grad_()
            target = losses.targets(torch.full((len(signs),), label), classes, settings)
            values = losses.per_image(outputs, target, settings)
            (slope,) = torch.autograd.grad(values.sum(), outputs)
            assert torch.isfinite(values).all() and (values >= 0).all()
            assert torch.isfinite(slope).all()

    @every_loss
    def test_the_value_is_the_images_own_whatever_batch_it_is_in(self, loss: str) -> None:
        outputs, labels = drawn(loss, 4)
        target, weights = losses.targets(labels, 4, config(loss)), torch.tensor([3.0, 1.0, 0.2, 0.0])
        whole = losses.per_image(outputs, target, config(loss), weights)
        parts = [losses.per_image(outputs[i::3], target[i::3], config(loss), weights) for i in range(3)]
        assert whole.shape == (12,)
        for i, part in enumerate(parts):
            torch.testing.assert_close(whole[i::3], part)

    @every_loss
    def test_an_image_counts_by_the_weight_of_its_class_or_classes(self, loss: str) -> None:
        outputs, labels = drawn(loss, 4)
        weights = torch.tensor([3.0, 1.0, 0.5, 0.0])
        target = losses.targets(labels, 4, config(loss))
        plain = losses.per_image(outputs, target, config(loss))
        torch.testing.assert_close(losses.per_image(outputs, target, config(loss), weights), plain * weights[labels])
        mixed = 0.25 * target + 0.75 * target.flip(0)
        plain = losses.per_image(outputs, mixed, config(loss))
        shares = 0.25 * weights[labels] + 0.75 * weights[labels.flip(0)]
        torch.testing.assert_close(losses.per_image(outputs, mixed, config(loss), weights), plain * shares)

    @every_loss
    def test_half_precision_and_autocast_change_no_arithmetic(self, loss: str) -> None:
        outputs, labels = drawn(loss, 4)
        half, weights = outputs.bfloat16(), torch.tensor([0.3, 1.7, 1.0, 1.0])
        target = losses.targets(labels, 4, config(loss, soft_labels=0.7))
        expected = losses.per_image(half.float(), target, config(loss), weights)
        assert expected.dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = losses.per_image(half, target, config(loss), weights)
            log_p = losses.log_probabilities(half, loss)
        assert torch.equal(found, expected)
        assert torch.equal(log_p, losses.log_probabilities(half.float(), loss))

    @every_loss
    @two_and_four
    def test_a_few_steps_learn_an_ordered_problem(self, loss: str, classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(200, 1, generator=generator)
        labels = (x[:, 0] * classes).long()
        size = losses.outputs(loss, classes)
        scores = 1 if loss == "coral" else size  # A coral layer: one score, and a bias of each threshold.
        weight = torch.zeros(1, scores, requires_grad=True)
        bias = torch.zeros(size, requires_grad=True)
        target = losses.targets(labels, classes, config(loss))
        optimizer = torch.optim.Adam([weight, bias], lr=0.5)
        for _ in range(100):
            value = losses.per_image((x - 0.5) @ weight + bias, target, config(loss)).mean()
            weight.grad, bias.grad = torch.autograd.grad(value, (weight, bias))
            optimizer.step()
        with torch.no_grad():
            found = losses.log_probabilities((x - 0.5) @ weight + bias, loss).argmax(dim=1)
        assert (found == labels).float().mean() > 0.9


class TestProbabilities:
    @every_loss
    @two_and_four
    def test_they_add_up_to_one(self, loss: str, classes: int) -> None:
        outputs, _ = drawn(loss, classes)
        log_p = losses.log_probabilities(outputs, loss)
        assert log_p.shape == (12, classes)
        torch.testing.assert_close(log_p.exp().sum(dim=1), torch.ones(12))

    @every_loss
    @two_and_four
    def test_they_are_finite_and_add_up_to_one_for_huge_outputs_in_any_order(self, loss: str, classes: int) -> None:
        size = losses.outputs(loss, classes)
        outputs = torch.cartesian_prod(*[torch.tensor([-1e4, 0.0, 1e-9, 1e4])] * size).reshape(-1, size)
        log_p = losses.log_probabilities(outputs, loss)
        assert torch.isfinite(log_p).all()
        torch.testing.assert_close(log_p.exp().sum(dim=1), torch.ones(len(outputs)))

    def test_corn_multiplies_conditional_probabilities(self) -> None:
        a, b = 0.9, 0.3
        outputs = torch.tensor([[math.log(a / (1 - a)), math.log(b / (1 - b))]])
        assert losses.log_probabilities(outputs, "corn").exp()[0].tolist() == pytest.approx([1 - a, a * (1 - b), a * b])

    def test_coral_takes_differences_and_a_negative_one_is_nearly_nothing(self) -> None:
        def of(*above: float) -> list[float]:
            outputs = torch.tensor([[math.log(p / (1 - p)) for p in above]])
            found: list[float] = losses.log_probabilities(outputs, "coral").exp()[0].tolist()
            return found

        assert of(0.9, 0.3) == pytest.approx([0.1, 0.6, 0.3])
        assert of(0.3, 0.9) == pytest.approx([0.7 / 1.6, 0.0, 0.9 / 1.6], abs=1e-6)

    def test_coral_keeps_its_digits_where_thresholds_are_far_from_the_score(self) -> None:
        log_p = losses.log_probabilities(torch.tensor([[30.0, 29.0, 28.0]]), "coral")[0].double().numpy()
        exact = np.exp(-29.0) - np.exp(-30.0)  # 1 - s(x) is exp(-x) there; in float32 every s(x) is 1.
        assert log_p[1] == pytest.approx(math.log(exact), rel=1e-6)

    @pytest.mark.parametrize("loss", ORDINAL)
    def test_a_higher_output_makes_denser_classes_more_likely(self, loss: str) -> None:
        def above(outputs: torch.Tensor) -> npt.NDArray[np.float64]:
            p = losses.log_probabilities(outputs, loss).double().exp().numpy()
            sums: npt.NDArray[np.float64] = p[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
            return sums

        outputs, _ = drawn(loss, 4, images=50)
        for delta in (0.01, 1.0, 30.0):
            assert (above(outputs + delta) >= above(outputs) - 1e-6).all()

    @every_loss
    @two_and_four
    def test_the_least_loss_is_at_the_targets_distribution(self, loss: str, classes: int) -> None:
        target = soft(1, classes)
        outputs = torch.zeros(1, losses.outputs(loss, classes), requires_grad=True)
        optimizer = torch.optim.LBFGS([outputs], max_iter=200, line_search_fn="strong_wolfe")
        settings = config(loss, focal_gamma=0.0)

        def closure() -> torch.Tensor:
            value = losses.per_image(outputs, target, settings).sum()
            (outputs.grad,) = torch.autograd.grad(value, outputs)
            return value

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        torch.testing.assert_close(losses.log_probabilities(outputs.detach(), loss).exp(), target, atol=2e-3, rtol=0)


class TestClassWeights:
    LABELS = np.repeat([0, 1, 3], [10, 40, 2]).astype(np.int64)

    def test_there_are_none_unless_asked_for(self) -> None:
        assert losses.class_weights(self.LABELS, 4, config(), 0.999) is None

    @pytest.mark.parametrize("rule", ["balanced", "sqrt", "effective"])
    def test_rare_classes_weigh_more_absent_ones_nothing_and_the_mean_over_rows_is_one(self, rule: Any) -> None:
        weights = losses.class_weights(self.LABELS, 4, config(class_weights=rule), 0.9)
        assert weights is not None and weights.dtype == torch.float32
        assert weights[3] > weights[0] > weights[1] > weights[2] == 0
        assert weights[self.LABELS].mean().item() == pytest.approx(1)

    def test_balanced_gives_every_class_the_same_sum_and_sqrt_its_root(self) -> None:
        balanced, root = (
            losses.class_weights(self.LABELS, 4, config(class_weights=rule), 0.9) for rule in ("balanced", "sqrt")
        )
        assert balanced is not None and root is not None
        assert (balanced * torch.tensor([10, 40, 0, 2])).tolist() == pytest.approx([52 / 3, 52 / 3, 0, 52 / 3])
        assert (root[0] / root[1]).item() == pytest.approx(2)

    def test_effective_goes_from_none_to_balanced_with_beta(self) -> None:
        natural = losses.class_weights(self.LABELS, 4, config(class_weights="effective"), 0.0)
        nearly = losses.class_weights(self.LABELS, 4, config(class_weights="effective"), 1 - 1e-9)
        balanced = losses.class_weights(self.LABELS, 4, config(class_weights="balanced"), 0.0)
        assert natural is not None and nearly is not None and balanced is not None
        assert natural.tolist() == [1, 1, 0, 1]
        torch.testing.assert_close(nearly, balanced, rtol=1e-5, atol=0)
