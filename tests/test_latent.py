"""Models of latents with their decoder: all that is computed is of latents, and says so."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import sdekit as sk
from sdekit.report.tables import text
from sdekit.sampling import Model

PROCESS = sk.VP()
TARGET = sk.targets.Gaussian(torch.zeros(2), torch.eye(2))
SCALE, SHIFT = 0.5, 0.25


class Decoder(nn.Module):
    """Two latents to six numbers; the encoder is its inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.arange(12.0).reshape(6, 2).sin()).Q)
        self.drop = nn.Dropout(0.5)
        self.sizes: list[int] = []

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(z))
        return self.drop(z @ self.weight.mT)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def made(**arguments) -> tuple[sk.Latent, Decoder]:
    decoder = Decoder()
    return sk.latent(TARGET.model(PROCESS), decoder, SCALE, SHIFT, decoder.encode, **arguments), decoder


def test_samples_are_the_inner_models_and_say_their_space():
    model, _ = made()
    assert isinstance(model, Model)
    out, bare = (sk.sample(m, (5, 2), nfe=6, seed=0) for m in (model, TARGET.model(PROCESS)))
    assert torch.equal(out.x, bare.x)
    assert (out.space, bare.space) == ("latents", "data")
    assert sk.sample_adaptive(model, (3, 2), seed=0).space == "latents"
    assert model.nfe == model.model.nfe > 0


def test_what_wraps_a_model_of_latents_says_so_too():
    model = sk.Thresholded(made()[0])
    assert sk.sample(model, (2, 2), nfe=3, seed=0).space == "latents"


def test_decoding_undoes_shift_and_scale_in_batches():
    model, decoder = made()
    z = sk.sample(model, (5, 2), nfe=6, seed=0)
    decoder.train()
    x = model.decode(z, batch_size=2)
    assert decoder.sizes == [2, 2, 1]
    assert decoder.training  # put back
    assert not x.requires_grad
    assert torch.allclose(x, (z.x / SCALE + SHIFT) @ decoder.weight.mT, atol=1e-6)
    assert torch.allclose(model.decode(z.x), x, atol=1e-6)
    assert torch.allclose(model.encode(x, batch_size=3), z.x, atol=1e-5)


def test_scales_may_differ_by_channel():
    scale, shift = torch.tensor([0.5, 2.0], dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)
    model = sk.latent(TARGET.model(PROCESS), lambda z: z, scale, shift, encoder=lambda x: x)
    z = torch.ones(3, 2)
    assert torch.equal(model.decode(z), torch.tensor([[3.0, -0.5]]).expand(3, 2))
    assert torch.equal(model.encode(model.decode(z)), z)


def test_the_density_is_of_latents():
    model, _ = made()
    z = TARGET.sample(4)
    found = sk.log_prob(model, z)
    assert torch.allclose(found.nats, TARGET.log_prob(z, PROCESS.t_min, PROCESS), atol=1e-3)
    assert found.space == "latents"
    assert sk.log_prob(TARGET.model(PROCESS), z).space == "data"
    with pytest.raises(ValueError, match="quantization: the levels are of data"):
        sk.log_prob(model, z, quantization=sk.Quantization(bins=8, scale=0.25))


def test_a_comparison_is_between_latents_and_its_records_say_so(tmp_path):
    model, decoder = made()
    data = model.decode(TARGET.sample(64))
    arguments = {"solvers": ["ddim"], "nfe": [4], "samples": 32}
    found = sk.compare(model, model.encode(data), features=model.decode, out=tmp_path, **arguments)
    assert found.space == "latents"
    assert {cell.target for cell in found.cells} == {"model, latents"}
    assert text(found).startswith("model, latents, VP(")
    assert json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])["target"] == "model, latents"
    calls = len(decoder.sizes)
    bare = sk.compare(TARGET.model(PROCESS), model.encode(data), **arguments)
    assert bare.space == "data"
    assert {cell.target for cell in bare.cells} == {"model"}
    assert bare.cells[0].metrics["sliced_wasserstein"] == found.cells[0].metrics["sliced_wasserstein"]
    assert calls > 0


def test_data_given_for_latents_are_told_apart_from_them():
    inner = nn.Conv2d(2, 2, 1).requires_grad_(False)
    bare = sk.ScoreModel(lambda x, t: inner(x), PROCESS)
    model, images = sk.latent(bare, lambda z: z.repeat(1, 2, 2, 2)[:, :3]), torch.randn(64, 3, 8, 8)
    sentence = r"fails on x of shape \[\d+, 3, 8, 8\]: .*2 channels.* This model works in the space of latents: of data"
    for call in (
        lambda: sk.log_prob(model, images[:4]),
        lambda: sk.sample(model, (4, 3, 8, 8), nfe=3),
        lambda: sk.compare(model, images, solvers=["ddim"], nfe=[4], samples=16),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
    with pytest.raises(RuntimeError, match="expected input"):  # a model of data is not told of latents
        bare.eps(images, 0.5)


def test_other_errors_of_the_model_inside_stay_what_they_are():
    guided = sk.guidance.ClassifierFree(sk.ScoreModel(lambda x, t, label: x, PROCESS), 2.0, null={"label": 3})
    with pytest.raises(ValueError, match=r"^label: ") as inside:
        sk.sample(guided, (2, 2), nfe=2, label=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^label: ") as around:
        sk.sample(sk.latent(guided, lambda z: z), (2, 2), nfe=2, label=torch.zeros(3, dtype=torch.int64))
    assert str(inside.value) == str(around.value)


def test_conditions_reach_the_network():
    seen = []

    def net(x, t, label):
        seen.append(label.tolist())
        return x

    model = sk.latent(sk.ScoreModel(net, PROCESS), lambda z: z)
    sk.sample(model, (4, 2), nfe=2, seed=0, batch_size=2, label=torch.arange(4))
    assert [0, 1] in seen
    assert [2, 3] in seen
    with pytest.raises(ValueError, match="unknown argument of sample or of the network 'lable'"):
        sk.sample(model, (4, 2), nfe=2, lable=torch.arange(4))


def test_what_diffusers_autoencoders_return_is_unpacked():
    decoder = Decoder().eval()

    def decode(z):
        return SimpleNamespace(sample=decoder(z))

    def encode(x):
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: decoder.encode(x)))

    model = sk.latent(TARGET.model(PROCESS), decode, SCALE, SHIFT, encode)
    z = TARGET.sample(3)
    assert torch.allclose(model.encode(model.decode(z)), z, atol=1e-5)


def test_diffusers_autoencoder_itself():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, sample_size=8).eval()
    model = sk.latent(sk.ScoreModel(lambda x, t: x, PROCESS), vae.decode, 0.18215, 0.1, vae.encode)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        z = (vae.encode(x).latent_dist.mode() - 0.1) * 0.18215
        assert torch.allclose(model.encode(x), z, atol=1e-6)
        assert torch.allclose(model.decode(z, batch_size=2), vae.decode(z / 0.18215 + 0.1).sample, atol=1e-5)


def test_what_makes_no_sense_is_refused():
    model, _ = made()
    with pytest.raises(ValueError, match=r"scale=0\.0: it must not be 0"):
        sk.latent(TARGET.model(PROCESS), lambda z: z, 0.0)
    with pytest.raises(ValueError, match=r"scale=tensor.*must not be 0"):
        sk.latent(TARGET.model(PROCESS), lambda z: z, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="it has a decoder already"):
        sk.latent(model, lambda z: z)
    with pytest.raises(ValueError, match="encoder: none was given"):
        sk.latent(TARGET.model(PROCESS), lambda z: z).encode(torch.zeros(1, 6))
    with pytest.raises(ValueError, match="z carries noise of sigma="):
        model.decode(sk.sample(model, (2, 2), nfe=3, seed=0, final="none"))
    with pytest.raises(ValueError, match="batch_size=0"):
        model.decode(torch.zeros(1, 2), batch_size=0)
    with pytest.raises(ValueError, match="the decoder returned a str"):
        sk.latent(TARGET.model(PROCESS), lambda z: "image").decode(torch.zeros(1, 2))
