"""Models of latents with the decoder to what the latents stand for: all they compute, they compute in latent space."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.adaptive import AdaptiveSolution
from sdekit.door import door
from sdekit.model import evaluating
from sdekit.sampling import Model, Solution, Wrapper
from sdekit.solvers.registry import check_count

Network = Callable[[Tensor], Any]
# how torch's kernels, and our own networks, say that x's shape is not theirs
_SHAPES = re.compile(r"\bshapes\b|\bsize\b|\bchannels\b|\bdimensions?\b|^x has shape|for x of shape")


@door
@dataclass(frozen=True, eq=False)
class Latent(Wrapper):
    """A model of z = (encoder(x) − shift)·scale, with its decoder: x = decoder(z/scale + shift). ``latent`` makes it.

    It is a model like any other, of z: ``sample`` returns latents, ``compare`` measures latents against latents, and
    ``log_prob`` is the density of the latents, never of what they decode to. Their results say ``space="latents"``.
    """

    model: Model
    decoder: Network
    scale: float | Tensor = 1.0
    shift: float | Tensor = 0.0
    encoder: Network | None = None
    space = "latents"

    @property
    def nfe(self) -> int:
        """Calls of the model of the latents; the decoder's are none of them."""
        return self.model.nfe

    @property
    def net(self) -> Any:
        """The model's network; None where it has none."""
        return getattr(self.model, "net", None)

    @property
    def predicts(self) -> str:
        """What the model's network predicts."""
        return getattr(self.model, "predicts", "eps")

    def predict(self, kind: str, x: Tensor, t: float | Tensor, /, **conditions: Any) -> Tensor:
        """The model's prediction, of latents. Raises ValueError where its network fails on x's shape, as on data's."""
        try:
            return self.model.predict(kind, x, t, **conditions)
        except (RuntimeError, ValueError) as error:
            if isinstance(error, torch.OutOfMemoryError) or not _SHAPES.search(str(error)):
                raise
            raise ValueError(
                f"the network fails on x of shape {list(x.shape)}: {error}. This model works in the space of latents:"
                " of data, its encode(data) makes them"
            ) from error

    def decode(self, z: Tensor | Solution | AdaptiveSolution, batch_size: int | None = None) -> Tensor:
        """decoder(z/scale + shift), ``batch_size`` at a time, in evaluation mode and without gradients.

        Raises ValueError for what ``sample`` returned with ``final="none"``, which still carries noise.
        """
        if not isinstance(z, Tensor):
            if z.sigma > 0:
                raise ValueError(f'z carries noise of sigma={z.sigma:g}: a decoder takes samples without final="none"')
            z = z.x
        return self._apply(
            self.decoder, "decoder", z, batch_size, lambda z: z / self._as(self.scale, z) + self._as(self.shift, z)
        )

    def encode(self, x: Tensor, batch_size: int | None = None) -> Tensor:
        """(encoder(x) − shift)·scale, ``batch_size`` at a time, in evaluation mode and without gradients.

        Raises ValueError where there is no encoder.
        """
        if self.encoder is None:
            raise ValueError("encoder: none was given to latent(...), so data cannot become latents")
        z = self._apply(self.encoder, "encoder", x, batch_size, lambda x: x)
        return (z - self._as(self.shift, z)) * self._as(self.scale, z)

    @torch.no_grad()
    def _apply(
        self, network: Network, name: str, x: Tensor, batch_size: int | None, before: Callable[[Tensor], Tensor]
    ) -> Tensor:
        size = max(1, len(x)) if batch_size is None else batch_size
        check_count("batch_size", size, 1, f"it is how many samples the {name} takes at once")
        with evaluating(network):
            return torch.cat([_tensor(name, network(before(part))) for part in x.split(size)])

    @staticmethod
    def _as(value: float | Tensor, x: Tensor) -> float | Tensor:
        return value.to(x) if isinstance(value, Tensor) else value


def _tensor(name: str, output: Any) -> Tensor:
    """The result, or the tensor inside what diffusers' autoencoders return."""
    if name == "encoder" and hasattr(output, "latent_dist"):
        output = output.latent_dist.mode()
    output = getattr(output, "sample", output) if not isinstance(output, Tensor) else output
    if not isinstance(output, Tensor):
        raise ValueError(f"the {name} returned a {type(output).__name__}: it must return a tensor")
    return output


@door
def latent(
    model: Model,
    decoder: Network,
    scale: float | Tensor = 1.0,
    shift: float | Tensor = 0.0,
    encoder: Network | None = None,
) -> Latent:
    """A model of latents with its decoder; see ``Latent``. Wrap it last: what wraps it has no decoder.

    Args:
        model: a ``ScoreModel`` of the latents, or what wraps one.
        decoder: latents [n, *latent] → data [n, *event]; a function, or a method such as ``vae.decode``.
        scale, shift: diffusers' ``scaling_factor`` and ``shift_factor``; or tensors that broadcast against latents.
        encoder: data → latents, before shift and scale; of a distribution that it returns, as ``vae.encode``, the mode.

    Raises ValueError for a model that has a decoder already, or a scale with a 0.

    >>> from sdekit import VP, sample, targets
    >>> target = targets.Gaussian(torch.zeros(2), torch.eye(2))
    >>> model = latent(target.model(VP()), lambda z: z.repeat(1, 3), scale=0.5)
    >>> out = sample(model, (4, 2), nfe=5, seed=0)
    >>> out.space, model.decode(out, batch_size=3).shape
    ('latents', torch.Size([4, 6]))
    """
    if isinstance(model, Latent):
        raise ValueError("model: it has a decoder already: give the model inside, as its attribute model")
    if bool((torch.as_tensor(scale) == 0).any()):
        raise ValueError(f"scale={scale}: it must not be 0, as latents are divided by it to be decoded")
    return Latent(model, decoder, scale, shift, encoder)
