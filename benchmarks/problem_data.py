"""Data of the bench of problems, as targets whose flow is known: real images and tables, and made-up mixtures.

Nothing is downloaded: scikit-learn and scikit-image carry the images and tables in their wheels. Everything is float64.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdekit import noise
from sdekit.data import digits
from sdekit.targets import GaussianMixture, Target


class Points(GaussianMixture):
    """Equal Gaussians around points [K, *event], with distances by one matrix product.

    ``Empirical`` takes them from differences, which float32 needs. In float64 the product leaves an error of 1e-10 in
    the log of a weight, and costs a tenth.
    """

    def __init__(self, points: Tensor, bandwidth: float) -> None:
        super().__init__(points.double(), bandwidth)
        self.register_buffer("squares", self.location.square().sum(1))

    def _log_joint(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        total = alpha**2 * self.variances + sigma**2
        scaled = x / alpha
        products = torch.addmm(self.squares, scaled, self.location.T, alpha=-2)
        distances = products.add_(scaled.square().sum(1, keepdim=True)).mul_(alpha**2)
        return distances.mul_(-0.5 / total).add_(self.log_weights - 0.5 * x.shape[1] * total.log()), total


class Ellipsoids(Target):
    """Σ_k w_k N(m_k, U_k diag(s_k²) U_kᵀ): each component's posterior is Gaussian and diagonal in its own basis.

    Args:
        means: [K, D].
        bases: [K, D, D], orthogonal, eigenvectors in columns.
        stds: [K, D].
    """

    def __init__(self, means: Tensor, bases: Tensor, stds: Tensor) -> None:
        super().__init__(means.shape[1:])
        self.register_buffer("location", means)
        self.register_buffer("bases", bases)
        self.register_buffer("variances", stds.square())

    def _means(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        total = alpha**2 * self.variances[:, None] + sigma**2
        coordinates = (x - alpha * self.location[:, None]) @ self.bases  # [K, batch, D]
        log_joint = -0.5 * (coordinates.square() / total + total.log()).sum(2)
        weights = log_joint.softmax(0)[:, :, None]
        whitened = coordinates / total
        back = self.bases.mT
        x0 = self.location[:, None] + (alpha * self.variances[:, None] * whitened) @ back
        return (weights * x0).sum(0), (weights * (whitened @ back)).sum(0)

    def _draw(self, seed: int, samples: Tensor) -> Tensor:
        pick = samples % len(self.location)
        z = noise.normal(seed, 1, samples, self.event, self.location.dtype) * self.variances[pick].sqrt()
        return self.location[pick] + (self.bases[pick] @ z[:, :, None])[:, :, 0]


def normals(seed: int, *shape: int) -> Tensor:
    """Standard normals of a seed: the same everywhere."""
    return noise.normal(seed, 0, torch.arange(shape[0]), shape[1:], torch.float64)


def circle() -> Target:
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return GaussianMixture(torch.stack([angles.cos(), angles.sin()], dim=1), 0.1)


def lattice() -> Target:
    side = torch.linspace(-1.5, 1.5, 10, dtype=torch.float64)
    return GaussianMixture(torch.cartesian_prod(side, side), 0.02)


def unequal() -> Target:
    means = normals(11, 3, 16)
    weights = torch.tensor([0.9, 0.09, 0.01], dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.3, 0.15, 0.05], dtype=torch.float64), weights)


def ellipsoids() -> Target:
    bases = torch.linalg.qr(normals(12, 6, 8, 8)).Q
    stds = torch.logspace(-1.7, 0.0, 8, dtype=torch.float64).expand(6, 8)
    return Ellipsoids(normals(13, 6, 8), bases, stds)


def overlapping() -> Target:
    return GaussianMixture(normals(14, 10, 32), 0.7)


def rolled(dimension: int = 64, width: float = 0.02) -> Target:
    """A swiss roll of 2,000 points, turned into a random three-dimensional subspace."""
    along, height = torch.special.ndtr(normals(15, 2000, 2)).unbind(1)
    angle = 1.5 * math.pi * (1 + 2 * along)
    points = torch.stack([angle * angle.cos() / 7, 3 * height - 1.5, angle * angle.sin() / 7], dim=1)
    return Points(points @ torch.linalg.qr(normals(16, dimension, 3)).Q.T, width)


def closed_curve() -> Target:
    """1,000 points on a curve of three harmonics in 24 dimensions: a one-dimensional manifold."""
    angle = torch.arange(1000, dtype=torch.float64) * (2 * math.pi / 1000)
    waves = torch.stack([wave for k in (1, 2, 3) for wave in ((k * angle).cos() / k, (k * angle).sin() / k)], dim=1)
    return Points(2 * waves @ torch.linalg.qr(normals(17, 24, 6)).Q.T, 0.03)


def table(name: str, bandwidth: float) -> Target:
    """A table of scikit-learn's, every column standardised."""
    from sklearn import datasets

    rows = torch.as_tensor(getattr(datasets, f"load_{name}")(return_X_y=True)[0], dtype=torch.float64)
    return Points((rows - rows.mean(0)) / rows.std(0), bandwidth)


def all_digits() -> Tensor:
    images = digits()
    return torch.cat([images.train, images.held_out]).double()


def photographs(grey: bool) -> list[Tensor]:
    """scikit-learn's two colour photographs [channels, height, width] in [−1, 1]."""
    from sklearn.datasets import load_sample_images

    images = [torch.as_tensor(np.array(image), dtype=torch.float64) for image in load_sample_images().images]
    scaled = [image.permute(2, 0, 1) / 127.5 - 1 for image in images]
    return [image.mean(0, keepdim=True) for image in scaled] if grey else scaled


def bundled(*names: str) -> list[np.ndarray]:
    """Files that lie in scikit-image's wheel. Raises ImportError where it is not installed."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise ImportError("scikit-image carries these images: pip install -e '.[bench]'")
    paths = [Path(spec.origin).parent / "data" / name for name in names]
    if all(path.suffix == ".npy" for path in paths):
        return [np.load(path) for path in paths]
    from PIL import Image

    return [np.array(Image.open(path)) for path in paths]


def faces() -> Tensor:
    """The 200 grey pictures of scikit-image's ``lfw_subset``, half of them faces [200, 1, 25, 25], in [−1, 1]."""
    return torch.as_tensor(bundled("lfw_subset.npy")[0], dtype=torch.float64)[:, None] * 2 - 1


def small_faces() -> Tensor:
    """``faces`` at half the size, [200, 1, 12, 12]."""
    return torch.nn.functional.avg_pool2d(faces()[:, :, :24, :24], 2)


def colour_photographs() -> list[Tensor]:
    pixels = bundled("astronaut.png", "chelsea.png", "coffee.png")
    return [torch.as_tensor(image, dtype=torch.float64).permute(2, 0, 1) / 127.5 - 1 for image in pixels]


def patches(images: list[Tensor], count: int, size: int, seed: int) -> Tensor:
    """``count`` square patches [count, channels, size, size], as many from each image, anywhere in it."""
    uniform = torch.special.ndtr(normals(seed, count, 2))
    found = []
    for i, (u, v) in enumerate(uniform.tolist()):
        image = images[i % len(images)]
        top, left = int(u * (image.shape[1] - size + 1)), int(v * (image.shape[2] - size + 1))
        found.append(image[:, top : top + size, left : left + size])
    return torch.stack(found)
