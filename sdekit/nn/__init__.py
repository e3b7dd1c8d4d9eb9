"""Small networks, and networks in files."""

from sdekit.nn.classifier import Classifier
from sdekit.nn.store import digits_features, digits_model, load, load_model, load_network, save, save_network
from sdekit.nn.unet import UNet

__all__ = [
    "Classifier", "UNet", "digits_features", "digits_model", "load", "load_model", "load_network", "save",
    "save_network",
]  # fmt: skip
