"""Small networks in the form of models.DensityNet, and a step of training."""

import timm
import torch
from torch import nn

SMALL = ["test_resnet", "test_convnext", "test_efficientnet", "test_byobnet"]


class Net(nn.Module):
    """A timm backbone, and a second head on its logits."""

    def __init__(self, arch: str, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = timm.create_model(arch, num_classes=4, in_chans=1, drop_rate=0.2, drop_path_rate=0.1)
        self.side = nn.Linear(4, 2)

    def forward(self, x_B1HW: torch.Tensor) -> torch.Tensor:
        logits_BK: torch.Tensor = self.backbone(x_B1HW)
        return torch.cat([logits_BK, self.side(logits_BK)], dim=1)


def train_step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """One step on random images and random targets; what is random follows from the seed."""
    torch.manual_seed(seed)
    optimizer.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(net(torch.rand(4, 1, 32, 32)), torch.randint(6, (4,)))
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def snapshot(net: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all weights and buffers."""
    return {name: value.clone() for name, value in net.state_dict().items()}


def moved(before: dict[str, torch.Tensor], net: nn.Module) -> set[str]:
    """Names of the weights and buffers of which any bit has changed."""
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
