"""Data in files: the values against numpy and Pillow, and every file that must be refused."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sdekit.data import BYTES
from sdekit.readers import read

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)  # height 4, width 5: they cannot be swapped unseen
GREY = RNG.integers(0, 256, (6, 4, 5), dtype=np.uint8)


def scaled(u: np.ndarray) -> torch.Tensor:
    """u/127.5 − 1, from float64."""
    return torch.tensor(u.astype(np.float64) / 127.5 - 1, dtype=torch.float32)


def folder_of(path: Path, images: np.ndarray, suffix: str = ".png") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(path / f"{i}{suffix}")
    return path


def refused(path: str | Path, *words: str, limit: int | None = None) -> None:
    for word in words:
        with pytest.raises(ValueError, match=re.escape(word)):
            read(path, limit)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
def test_a_folder_of_images_is_their_pixels_channels_first(tmp_path: Path, suffix: str) -> None:
    if suffix == ".webp":
        for i, image in enumerate(COLOUR):
            Image.fromarray(image).save(tmp_path / f"{i}.webp", lossless=True)
    else:
        folder_of(tmp_path, COLOUR, suffix)
    data = read(tmp_path)
    assert (data.x - scaled(COLOUR.transpose(0, 3, 1, 2))).abs().max() < 1e-6
    assert data.x.dtype == torch.float32
    assert data.x.is_contiguous()


def test_grey_images_have_one_channel_and_their_levels_come_back(tmp_path: Path) -> None:
    data = read(folder_of(tmp_path, GREY))
    assert data.x.shape == (6, 1, 4, 5)
    assert data.quantization == BYTES
    assert np.array_equal(BYTES.levels(data.x)[:, 0].numpy(), GREY)
    assert torch.equal(BYTES.values(torch.arange(256)), (torch.arange(256).double() / 127.5 - 1).float())


def test_folders_within_are_read_in_the_order_of_paths_and_other_files_are_not(tmp_path: Path) -> None:
    folder_of(tmp_path / "b", COLOUR[:2])
    folder_of(tmp_path / "a", COLOUR[2:])
    folder_of(tmp_path / ".hidden", GREY)
    (tmp_path / "b" / "labels.txt").write_text("0 1")
    (tmp_path / "c.png").mkdir()
    assert torch.allclose(read(tmp_path).x, scaled(COLOUR[[2, 3, 4, 5, 0, 1]].transpose(0, 3, 1, 2)), atol=1e-6)


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise shows it upright
    Image.fromarray(COLOUR[0]).save(tmp_path / "x.png", exif=exif)
    turned = np.rot90(COLOUR[0], -1).transpose(2, 0, 1)
    assert torch.allclose(read(tmp_path).x[0], scaled(turned), atol=1e-6)


def test_jpegs_are_read(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 200, dtype=np.uint8)).save(tmp_path / "x.JPG", quality=95)
    assert (read(tmp_path).x - (200 / 127.5 - 1)).abs().max() < 0.03


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2"])
def test_floats_stay_as_they_are(tmp_path: Path, dtype: str) -> None:
    x = RNG.normal(size=(4, 3)).astype(dtype)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    data = read(tmp_path / "x.npy")
    assert data.quantization is None
    assert data.note == ""
    assert torch.equal(data.x, torch.tensor(x.astype(np.float32)))


@pytest.mark.parametrize(
    ("u", "expected"),
    [
        (GREY, GREY[:, None]),
        (COLOUR, COLOUR.transpose(0, 3, 1, 2)),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR.transpose(0, 3, 1, 2)),
        (COLOUR[:, :3], COLOUR[:, :3]),  # three rows and three channels: as it is, channels first
        (GREY[:, 0], GREY[:, 0]),
    ],
    ids=["grey", "channels last", "channels first", "either", "rows"],
)
def test_bytes_are_scaled_as_images_and_it_is_said(tmp_path: Path, u: np.ndarray, expected: np.ndarray) -> None:
    np.save(tmp_path / "u.npy", u)
    data = read(tmp_path / "u.npy")
    assert torch.allclose(data.x, scaled(expected), atol=1e-6)
    assert data.quantization == BYTES
    assert "uint8 scaled to [−1, 1]" in data.note
    assert ("moved" in data.note) == (u.shape != expected.shape and u.ndim == 4)


def test_an_array_of_several_is_named(tmp_path: Path) -> None:
    a, b = RNG.normal(size=(3, 2)).astype(np.float32), RNG.normal(size=(4, 2)).astype(np.float32)
    np.savez(tmp_path / "two.npz", a=a, b=b)
    np.savez(tmp_path / "one.npz", a)
    save_file({"a": torch.tensor(a), "b": torch.tensor(b).bfloat16()}, tmp_path / "two.safetensors")
    save_file({"x": torch.tensor(a)}, tmp_path / "one.safetensors")
    for suffix in ("npz", "safetensors"):
        assert torch.equal(read(tmp_path / f"one.{suffix}").x, torch.tensor(a))
        assert torch.equal(read(f"{tmp_path}/two.{suffix}:a").x, torch.tensor(a))
        refused(tmp_path / f"two.{suffix}", "holds 2 arrays", f"two.{suffix}:a")
        refused(f"{tmp_path}/two.{suffix}:c", "unknown array 'c'")
    assert torch.equal(read(f"{tmp_path}/two.safetensors:b").x, torch.tensor(b).bfloat16().float())
    refused(f"{tmp_path}/absent.npz:a", "no such file")


def test_a_limit_reads_evenly_spaced_samples(tmp_path: Path) -> None:
    x = torch.arange(10.0)[:, None]
    np.save(tmp_path / "x.npy", x.numpy())
    save_file({"x": x}, tmp_path / "x.safetensors")
    for name in ("x.npy", "x.safetensors"):
        data = read(tmp_path / name, limit=4)
        assert data.x.flatten().tolist() == [0, 2, 5, 7]
        assert data.total == 10
        assert len(read(tmp_path / name, limit=20).x) == 10
    folder = folder_of(tmp_path / "images", GREY)
    assert torch.allclose(read(folder, limit=2).x[:, 0], scaled(GREY[[0, 3]]), atol=1e-6)
    refused(tmp_path / "x.npy", "limit=0", limit=0)


def test_arrays_that_are_no_samples_are_refused(tmp_path: Path) -> None:
    cases = {
        "vector": (np.zeros(5), "[n, 1]"),
        "empty": (np.zeros((0, 3)), "empty"),
        "no_elements": (np.zeros((3, 0)), "empty"),
        "whole": (np.zeros((3, 2), dtype=np.int64), "int64"),
        "deep": (np.zeros((3, 2), dtype=np.uint16), "uint16"),
        "truth": (np.zeros((3, 2), dtype=bool), "bool"),
        "complex": (np.zeros((3, 2), dtype=complex), "complex128"),
        "nan": (np.array([[1.0, np.nan], [2.0, np.inf]]), "holds 2 values"),
        "huge": (np.array([[1e300], [1.0]]), "beyond float32"),
    }
    for name, (array, word) in cases.items():
        np.save(tmp_path / f"{name}.npy", array)
        refused(tmp_path / f"{name}.npy", f"{name}.npy", word)
    save_file({"x": torch.zeros(3, 2, dtype=torch.int32)}, tmp_path / "whole.safetensors")
    refused(tmp_path / "whole.safetensors", "int32")


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    gone_off = tmp_path / "gone-off"
    objects = np.array([[Bomb(gone_off)]], dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "objects.npz", x=objects)
    for name in ("raw.npy", "raw.npz", "raw.pt", "raw.pkl", "raw.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(gone_off)))
    for name in ("objects.npy", "objects.npz", "raw.npy", "raw.npz", "raw.pt", "raw.pkl", "raw.safetensors"):
        refused(tmp_path / name, name)
    refused(tmp_path / "objects.npz", "Python objects")
    assert not gone_off.exists()
    pickle.loads((tmp_path / "raw.pkl").read_bytes())
    assert gone_off.exists(), "the bomb is a dud: the test shows nothing"


@pytest.mark.parametrize(
    ("second", "word"),
    [
        (Image.new("RGB", (5, 5)), "5×5"),
        (Image.new("L", (5, 4)), "grey"),
        (Image.new("RGBA", (5, 4)), "transparency"),
        (Image.new("LA", (5, 4)), "transparency"),
        (Image.new("P", (5, 4)), "mode P"),
        (Image.new("I;16", (5, 4)), "8 bits"),
        (Image.new("1", (5, 4)), "mode 1"),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else value,
)
def test_an_image_of_another_kind_is_named(tmp_path: Path, second: Image.Image, word: str) -> None:
    folder_of(tmp_path, COLOUR[:1])
    second.save(tmp_path / "second.png")
    refused(tmp_path, "second.png", word)


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    whole = folder_of(tmp_path / "whole", RNG.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)) / "0.png"
    for name, contents in {"cut": whole.read_bytes()[:4000], "text": b"no image"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "bad.png").write_bytes(contents)
        refused(tmp_path / name, "bad.png", "no image that can be read")
    frames = tmp_path / "frames"
    frames.mkdir()
    pictures = [Image.fromarray(image) for image in GREY[:2]]
    pictures[0].save(frames / "film.tif", save_all=True, append_images=pictures[1:])
    refused(frames, "film.tif", "2 frames")
    colour = tmp_path / "colour"
    colour.mkdir()
    Image.fromarray(COLOUR[0]).save(colour / "key.png", transparency=(1, 2, 3))
    refused(colour, "key.png", "transparency")


def test_paths_that_are_no_data_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "holds no images")
    refused(tmp_path / "absent", "no such file")
    (tmp_path / "x.csv").write_text("1,2")
    refused(tmp_path / "x.csv", ".npy", ".csv")
    np.savez(tmp_path / "zip.npz", x=np.zeros((2, 2)))
    (tmp_path / "zip.npz").rename(tmp_path / "zip.npy")
    refused(tmp_path / "zip.npy", "zip.npy", "it is a .npz file")
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    refused(f"{tmp_path}/x.npy:a", "without a name")
    (tmp_path / "x.npy").rename(tmp_path / "plain.npz")
    refused(tmp_path / "plain.npz", "cannot be read")
