"""Feature maps from files: DINOv2 by transformers and Inception by torch-fidelity, of random weights saved here."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from sdekit import features
from sdekit.identity import identify

GENERATOR = torch.Generator().manual_seed(0)
U = torch.randint(0, 256, (2, 3, 32, 32), generator=GENERATOR, dtype=torch.uint8)
X = U.float() / 127.5 - 1


def test_pixels_are_what_a_file_would_hold() -> None:
    assert torch.equal(features.pixels(X), U)
    assert torch.equal(features.pixels(X + 0.4 / 127.5), U.clamp(max=255))  # rounded, not cut off
    assert torch.equal(
        features.pixels(3 * X[:, :1]), features.pixels((3 * X[:, :1]).clamp(-1, 1).expand(-1, 3, -1, -1))
    )
    for shape in ((2, 4, 8, 8), (2, 8)):
        with pytest.raises(ValueError, match=r"1 or 3"):
            features.pixels(torch.zeros(shape))


@pytest.fixture(scope="module")
def saved_dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    folder = tmp_path_factory.mktemp("dinov2")
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def test_dinov2_is_transformers_class_token_of_the_resized_image(saved_dinov2: Path) -> None:
    from transformers import Dinov2Model

    ours = features.dinov2(str(saved_dinov2))
    net = Dinov2Model.from_pretrained(saved_dinov2).eval()
    resized = [  # by Pillow, a channel at a time in floats
        np.stack(
            [np.asarray(Image.fromarray(c.numpy().astype(np.float32)).resize((224, 224), Image.Resampling.BICUBIC))
             for c in image]
        )
        for image in U
    ]  # fmt: skip
    values = torch.tensor(np.stack(resized)).clamp(0, 255) / 255
    normal = (values - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    with torch.no_grad():
        expected = net(pixel_values=normal).last_hidden_state[:, 0]
        found = ours(X)
    assert found.shape == (2, 16)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert identify(ours) == identify(features.dinov2(str(saved_dinov2)))  # stores of finished cells know it again


def test_a_folder_that_is_no_whole_dinov2_is_refused(saved_dinov2: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*config\.json"):
        features.dinov2(str(tmp_path))
    config = json.loads((saved_dinov2 / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(ValueError, match="of type 'bert'"):
        features.dinov2(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        features.dinov2(str(tmp_path))
    weights = load_file(saved_dinov2 / "model.safetensors")
    weights.pop("layernorm.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing, layernorm\.weight"):
        features.dinov2(str(tmp_path))


def stub(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Modules that torch-fidelity imports and its Inception does not use, where they are missing."""

    class Anything(ModuleType):
        __path__: list[str] = []  # noqa: RUF012

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    for name in names:
        monkeypatch.setitem(sys.modules, name, Anything(name))
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])


@pytest.fixture
def extractor(monkeypatch: pytest.MonkeyPatch) -> Any:
    from importlib.util import find_spec

    if find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    if find_spec("torchvision") is None:
        whole = ["torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.datasets"]
        stub(monkeypatch, *whole)
    return pytest.importorskip("torch_fidelity").FeatureExtractorInceptionV3


def test_inception_is_torch_fidelitys_from_either_file(
    extractor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *_, **__: {})
        patch.setattr(extractor, "load_state_dict", lambda *_: None)
        net: nn.Module = extractor("random", ["2048"], feature_extractor_weights_path="none")
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    with torch.no_grad():
        expected = net(U[:1])[0]
        assert expected.std() > 0
        for name in ("weights.safetensors", "weights.pth"):
            assert torch.equal(features.inception(str(tmp_path / name))(X[:1]), expected)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="of another network"):
        features.inception(str(tmp_path / "other.safetensors"))


def test_inception_unpickles_nothing(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "gone-off",)

    torch.save({"x": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Bomb()))
    torch.save({"x": "text"}, tmp_path / "text.pth")
    for name in ("bomb.pth", "raw.pth", "text.pth", "absent.pth"):
        with pytest.raises(ValueError, match=f"inception:.*{name}"):
            features.inception(str(tmp_path / name))
    assert not (tmp_path / "gone-off").exists()


def test_a_library_that_is_missing_is_named(saved_dinov2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match="pip install transformers"):
        features.dinov2(str(saved_dinov2))
