"""More architectures, as users bring them. None is known to the workflow."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Perceptron(nn.Module):
    """One hidden layer on the pixels."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, hidden), nn.ReLU(), nn.Linear(hidden, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class Strided(nn.Module):
    """Strided convolutions with group normalisation and GELU, averaged over the image."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, width)
        self.second = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = F.gelu(self.norm(self.first(images)))
        return self.head(F.gelu(self.second(hidden)).mean((2, 3)))


class Normalised(nn.Module):
    """Strided convolutions with batch normalisation, and dropout before the last layer."""

    def __init__(self, width: int = 8, dropout: float = 0.2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, out in ((3, width), (width, 2 * width)):
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * width, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))
