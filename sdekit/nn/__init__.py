"""Small networks, and networks in files."""

from sdekit.nn.classifier import Classifier
from sdekit.nn.dit import DiT
from sdekit.nn.mlp import MLP
from sdekit.nn.precondition import preconditioned
from sdekit.nn.store import (
    digits_features,
    digits_few_model,
    digits_model,
    load,
    load_model,
    load_network,
    save,
    save_network,
)
from sdekit.nn.unet import UNet

__all__ = [
    "MLP", "Classifier", "DiT", "UNet", "digits_features", "digits_few_model", "digits_model", "load", "load_model",
    "load_network", "preconditioned", "save", "save_network",
]  # fmt: skip
