"""What is minimised: targets of the classes, the losses, and from a network's outputs back to probabilities.

All losses take soft targets, so that smoothed, Gaussian and mixed labels need no loss of their own. They are values per
image, which nothing normalises over a batch: so the mean over the workers is the loss of the global batch.

Shapes: ``B`` images, ``N`` rows, ``K`` classes, ``J`` outputs of the network (:func:`outputs`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from mammoray import sample
from mammoray.recipe import LossConfig
from mammoray.sample import Ints

_NARROWEST = 1e-6  # Of a Gaussian over class numbers: any narrower one is as good as a hard label, and overflows.
_TINY = 1e-12


def outputs(loss: str, classes: int) -> int:
    """How many outputs a network needs: one a class, or one a threshold between classes where they count as ordered.

    Examples
    --------
    >>> outputs("focal", 4), outputs("corn", 4), outputs("coral", 2)
    (4, 3, 1)
    """
    return classes - 1 if loss in ("corn", "coral") else classes


def targets(labels_B: torch.Tensor, classes: int, config: LossConfig) -> torch.Tensor:
    """Distribution over the classes that each image should get.

    First Gaussian soft labels, exp(-(k - label)^2 / (2 s^2)) normalised over the classes k, s being
    ``config.soft_labels``; then the share ``config.label_smoothing`` of it is spread over all classes alike.

    Parameters
    ----------
    labels_B : (B,) int64
        Class indices.
    classes : int
        K.

    Returns
    -------
    (B, K) float32
        Rows that add up to 1.

    References
    ----------
    Diaz and Marathe, "Soft labels for ordinal regression" (CVPR 2019), with the squared distance; Szegedy et al.,
    "Rethinking the Inception architecture" (CVPR 2016), for the smoothing.

    Examples
    --------
    >>> [round(share, 2) for share in targets(torch.tensor([1]), 4, LossConfig(soft_labels=0.5))[0].tolist()]
    [0.11, 0.79, 0.11, 0.0]
    """
    if config.soft_labels > 0:
        numbers_K = torch.arange(classes, device=labels_B.device)
        distance_BK = (numbers_K - labels_B[:, None]).float() / max(config.soft_labels, _NARROWEST)
        target_BK = torch.softmax(-0.5 * distance_BK.square(), dim=1)
    else:
        target_BK = functional.one_hot(labels_B, classes).float()
    return (1 - config.label_smoothing) * target_BK + config.label_smoothing / classes


def per_image(
    outputs_BJ: torch.Tensor, target_BK: torch.Tensor, config: LossConfig, weights_K: torch.Tensor | None = None
) -> torch.Tensor:
    """Loss of each image; its mean over images is what a training minimises.

    Parameters
    ----------
    outputs_BJ : (B, J) floating point
        Of the network. Taken to float32 first: half precision ends at 65,504 and has too few digits for a sum of logs.
    target_BK : (B, K) floating point
        Rows of :func:`targets`, or mixtures of them.
    config : LossConfig
        ``loss`` and ``focal_gamma``.
    weights_K : (K,) float32, optional
        Of :func:`class_weights`. An image counts by the sum of target times weight over the classes: for hard labels,
        by the weight of its class.

    Returns
    -------
    (B,) float32

    Notes
    -----
    With t the target, p the softmax of the outputs, s the sigmoid, and P(y > k) the sum of t above class k:

    - cross_entropy: sum over k of -t_k log p_k.
    - focal: sum over k of -t_k (1 - p_k)^gamma log p_k.
    - corn: sum over thresholds k of -[P(y > k) log s(o_k) + (P(y > k - 1) - P(y > k)) log(1 - s(o_k))] / (K - 1).
      Output k is the logit of P(y > k | y > k - 1), and so only images above class k - 1 speak of it. The paper divides
      by their number in the batch; here it is a constant, which no worker has to ask the others for. What is called
      too dense fails at one threshold only, what is called not dense enough at all that it should have passed.
    - coral: sum over thresholds k of -[P(y > k) log s(o_k) + (1 - P(y > k)) log(1 - s(o_k))] / (K - 1). Output k is the
      logit of P(y > k): one score of the image, plus a bias of the threshold.

    References
    ----------
    Lin et al., "Focal loss for dense object detection" (ICCV 2017). Shi, Cao and Raschka, "Deep neural networks for
    rank-consistent ordinal regression based on conditional probabilities" (2021, CORN). Cao, Mirjalili and Raschka,
    "Rank consistent ordinal regression for neural networks with application to age estimation" (Pattern Recognition
    Letters 140, 2020, CORAL).
    """
    outputs_BJ, target_BK = outputs_BJ.float(), target_BK.float()
    if config.loss in ("corn", "coral"):
        loss_B = _ordinal(outputs_BJ, target_BK, conditional=config.loss == "corn")
    else:
        gamma = config.focal_gamma if config.loss == "focal" else 0.0
        loss_B = _softmax_loss(outputs_BJ, target_BK, gamma)
    return loss_B if weights_K is None else loss_B * _sums(target_BK, weights_K[None, :])[:, 0]


def _softmax_loss(outputs_BK: torch.Tensor, target_BK: torch.Tensor, gamma: float) -> torch.Tensor:
    log_p_BK = functional.log_softmax(outputs_BK, dim=1)
    terms_BK = target_BK * log_p_BK
    if gamma > 0:
        # 1 - p without cancellation; above 0, where a power below 1 has an infinite slope.
        terms_BK = terms_BK * (-torch.expm1(log_p_BK)).clamp(min=_TINY) ** gamma
    return -terms_BK.sum(dim=1)


def _ordinal(outputs_BJ: torch.Tensor, target_BK: torch.Tensor, *, conditional: bool) -> torch.Tensor:
    """Binary cross-entropies of "denser than class k", over images that are above class k - 1 or over all."""
    above_JK = torch.ones(outputs_BJ.shape[1], target_BK.shape[1], device=target_BK.device).triu(1)
    above_BJ = _sums(target_BK, above_JK)
    not_above_BJ = target_BK[:, :-1] if conditional else _sums(target_BK, 1 - above_JK)
    log_yes, log_no = functional.logsigmoid(outputs_BJ), functional.logsigmoid(-outputs_BJ)
    return -(above_BJ * log_yes + not_above_BJ * log_no).sum(dim=1) / outputs_BJ.shape[1]


def _sums(x_BK: torch.Tensor, mask_JK: torch.Tensor) -> torch.Tensor:
    """Sums of ``x_BK`` over parts of its classes, (B, J).

    Neither a product of matrices, which autocast would take to half precision, nor cumsum, which is not deterministic
    on a GPU.
    """
    return (x_BK[:, None, :] * mask_JK).sum(dim=2)


def log_probabilities(outputs_BJ: torch.Tensor, loss: str) -> torch.Tensor:
    """Logarithm of the probability of each class, finite for all finite outputs.

    ``corn``: products of conditional probabilities, which add up to 1 by themselves. ``coral``: differences of
    P(y > k); where these rise with k, as they do not at the least loss (Cao et al. 2020), a difference counts as nearly
    0, and the rest is normalised.

    Parameters
    ----------
    outputs_BJ : (B, J) floating point
    loss : str
        The one that the outputs were trained with.

    Returns
    -------
    (B, K) float32

    Examples
    --------
    >>> log_probabilities(torch.zeros(1, 2), "corn").exp().tolist()
    [[0.5, 0.25, 0.25]]
    """
    outputs_BJ = outputs_BJ.float()
    if loss == "corn":
        return _conditional_products(outputs_BJ)
    return functional.log_softmax(_log_differences(outputs_BJ) if loss == "coral" else outputs_BJ, dim=1)


def _conditional_products(outputs_BJ: torch.Tensor) -> torch.Tensor:
    """Logarithm of P(y = k): above every threshold before k, and not above k itself."""
    thresholds = outputs_BJ.shape[1]
    before_KJ = torch.ones(thresholds + 1, thresholds, device=outputs_BJ.device).tril(-1)
    stopped_BK = functional.pad(functional.logsigmoid(-outputs_BJ), (0, 1))
    return _sums(functional.logsigmoid(outputs_BJ), before_KJ) + stopped_BK


def _log_differences(outputs_BJ: torch.Tensor) -> torch.Tensor:
    """Logarithm of P(y > k - 1) - P(y > k) for each class k.

    As s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)), which keeps its digits where both sigmoids are near 0 or 1.
    """
    log_yes, log_no = functional.logsigmoid(outputs_BJ), functional.logsigmoid(-outputs_BJ)
    step = (outputs_BJ[:, :-1] - outputs_BJ[:, 1:]).clamp(min=_TINY)
    between = log_yes[:, :-1] + log_no[:, 1:] + torch.log(-torch.expm1(-step))
    return torch.cat([log_no[:, :1], between, log_yes[:, -1:]], dim=1)


def class_weights(labels_N: Ints, classes: int, config: LossConfig, beta: float) -> torch.Tensor | None:
    """Weights of the classes in the loss, by the rule of the sampler.

    Parameters
    ----------
    labels_N : (N,) int64
        Class index of each training row, N at least 1.
    classes : int
        K.
    config : LossConfig
        ``class_weights``.
    beta : float
        Of ``effective``: :attr:`mammoray.recipe.SampleConfig.beta`.

    Returns
    -------
    (K,) float32 or None
        Their mean over the rows is 1, so that the learning rate need not change; 0 for a class without rows. None for
        ``none``.

    Examples
    --------
    >>> config = LossConfig(class_weights="balanced")
    >>> class_weights(np.array([0, 0, 0, 1, 3, 3]), 4, config, beta=0.0)
    tensor([0.6667, 2.0000, 0.0000, 1.0000])
    """
    if config.class_weights == "none":
        return None
    counts_K = np.bincount(labels_N, minlength=classes).astype(np.float64)
    weights_K = sample.class_weights(counts_K, config.class_weights, 1.0, beta)
    return torch.tensor(weights_K * counts_K.sum() / (weights_K @ counts_K), dtype=torch.float32)
