"""A small convolutional classifier, whose features are what a Fréchet distance is measured in."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from sdekit.door import Width, door


@door
class Classifier(nn.Module):
    """Class logits [batch, classes] of 8×8 images; ``features`` gives the layer before them.

    SiLU rather than ReLU: the features stay spread around their mean, as a Fréchet distance assumes.

    >>> import torch
    >>> net = Classifier()
    >>> x = torch.zeros(3, 1, 8, 8)
    >>> net(x).shape, net.features(x).shape
    (torch.Size([3, 10]), torch.Size([3, 32]))
    """

    def __init__(self, width: Width = 16, features: Width = 32, classes: Width = 10) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"width": width, "features": features, "classes": classes}
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(8 * width, features),
            nn.SiLU(),
        )
        self.classify = nn.Linear(features, classes)

    def forward(self, x: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch classes"]:
        return self.classify(self.features(x))
