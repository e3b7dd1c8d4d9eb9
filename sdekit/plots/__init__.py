"""Pictures of the theory, each by one function that returns matplotlib's ``Figure``; ``figure.savefig(path)`` keeps it.

Densities and scores are exact (``sdekit.targets``), paths are those of ``sample(keep="all")``.

>>> from sdekit import VP, Flow, plots
>>> [panel.get_title() for panel in plots.schedules([VP(), Flow()]).axes]
['α: what is left of the data', 'σ: noise', 'λ = log(α/σ)']
"""

from sdekit.plots.denoising import denoising
from sdekit.plots.density import DensityImage, Plane
from sdekit.plots.forward import forward_diffusion
from sdekit.plots.reverse import reverse_diffusion
from sdekit.plots.samplers import samplers
from sdekit.plots.schedules import schedules
from sdekit.plots.score import score_field
from sdekit.plots.single_value import single_value
from sdekit.plots.trajectories import trajectories

__all__ = [
    "DensityImage", "Plane", "denoising", "forward_diffusion", "reverse_diffusion", "samplers", "schedules",
    "score_field", "single_value", "trajectories",
]  # fmt: skip
