"""Pictures of the theory, each by one call of ``sdekit.plots``, for docs/pictures.md.

    python benchmarks/pictures.py               # all; some ten seconds of one core
    python benchmarks/pictures.py single-value  # one; --help lists the names

``--images DIR`` writes them elsewhere than docs/images.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from math import cos, pi, sin
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

import sdekit as sk
from sdekit import plots
from sdekit.nn import digits_model
from sdekit.targets import GaussianMixture

LINE = GaussianMixture(torch.tensor([[-2.0], [0.5], [1.5]]), torch.tensor([0.25, 0.15, 0.3]), torch.tensor([3.0, 2, 2]))
RING = GaussianMixture(torch.tensor([[1.5 * cos(k * pi / 3), 1.5 * sin(k * pi / 3)] for k in range(6)]), 0.15)
PROCESSES = [sk.VP(), sk.SubVP(), sk.VE(), sk.CosineVP(), sk.Flow(), sk.EDM()]

PICTURES: dict[str, Callable[[], Figure]] = {
    "forward-1d": lambda: plots.forward_diffusion(LINE, sk.VP()),
    "forward-2d": lambda: plots.forward_diffusion(RING, sk.VP()),
    "reverse-1d": lambda: plots.reverse_diffusion(LINE, sk.VP()),
    "reverse-2d": lambda: plots.reverse_diffusion(RING, sk.VP(), paths=3),
    "single-value": lambda: plots.single_value(8.0),
    "score-field": lambda: plots.score_field(RING, sk.VP()),
    "schedules": lambda: plots.schedules(PROCESSES),
    "samplers-1d": lambda: plots.samplers(LINE, sk.VP()),
    "samplers-2d": lambda: plots.samplers(RING, sk.VP(), samples=800),
    "samplers-paths": lambda: plots.reverse_diffusion(LINE, sk.VP(), solvers=["ddim", "heun", "dpmpp-2m"], nfe=8),
    "denoising": lambda: plots.denoising(digits_model(), (2, 1, 8, 8), seed=2, label=torch.tensor([3, 8])),
}


def save(figure: Figure, path: Path) -> None:
    """As PNG of 192 colours, a third of the size that ``figure.savefig(path)`` has."""
    drawn = io.BytesIO()
    figure.savefig(drawn)
    Image.open(drawn).convert("RGB").quantize(192, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help=", ".join(PICTURES))
    parser.add_argument("--images", type=Path, default=Path(__file__).parents[1] / "docs" / "images")
    given = parser.parse_args()
    if unknown := set(given.name) - set(PICTURES):
        parser.error(f"unknown picture {', '.join(sorted(unknown))}: choose from {', '.join(PICTURES)}")
    given.images.mkdir(parents=True, exist_ok=True)
    for name in given.name or PICTURES:
        path = given.images / f"{name}.png"
        save(PICTURES[name](), path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
