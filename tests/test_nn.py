import json
import math
import statistics
from dataclasses import asdict, replace
from importlib import resources

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

import sdekit as sk
from sdekit import noise
from sdekit.data import digits
from sdekit.nn import (
    Classifier,
    UNet,
    digits_features,
    digits_few_model,
    digits_model,
    load_model,
    load_network,
    save_network,
)
from sdekit.nn import digits as recipe
from sdekit.nn.unet import ResidualBlock, SelfAttention
from sdekit.process.description import build_process, describe_process
from sdekit.training import Optimisation, batch_rows, denoising_loss, denoising_risk

WEIGHTS = resources.files("sdekit") / "weights"


def random_weights(net, seed=0):
    """Every parameter normal with standard deviation 0.2: at its start a U-Net's output is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net


def small(**options):
    return random_weights(UNet(**{"widths": (8, 16), "embedding": 8, "groups": 4, **options}))


def images(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3))
def test_a_sample_does_not_depend_on_its_batch_at_any_even_size(height, width, batch):
    net, x, t = small().double(), images(batch, 1, 2 * height, 2 * width, dtype=torch.float64), torch.linspace(-4, 4, 3)
    t = t[:batch].double()
    together = net(x, t)
    assert together.abs().max() > 1e-3
    for i in range(batch):
        assert torch.allclose(net(x[i : i + 1], t[i : i + 1])[0], together[i], rtol=1e-10, atol=1e-12)


def test_a_residual_block_is_its_formula():
    block = random_weights(ResidualBlock(4, 3, groups=2)).double()
    x, e = images(2, 4, 5, 6, dtype=torch.float64), images(2, 3, seed=2, dtype=torch.float64)
    w = block.state_dict()

    def norm(x, name):
        pairs = x.reshape(2, 2, -1)  # two groups of two channels
        centred = pairs - pairs.mean(-1, keepdim=True)
        unit = (centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)
        return unit * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]

    def conv(x, name):
        padded = torch.zeros(2, 4, 7, 8, dtype=x.dtype)
        padded[:, :, 1:-1, 1:-1] = x
        windows = torch.stack([padded[:, :, i : i + 5, j : j + 6] for i in range(3) for j in range(3)], dim=2)
        return (
            torch.einsum("bckhw,ock->bohw", windows, w[f"{name}.weight"].flatten(2)) + w[f"{name}.bias"][:, None, None]
        )

    def silu(x):
        return x / (1 + (-x).exp())

    a, b = (e @ w["modulation.weight"].T + w["modulation.bias"])[:, :, None, None].split(4, dim=1)
    expected = x + conv(silu((1 + a) * norm(conv(silu(norm(x, "norm1")), "conv1"), "norm2") + b), "conv2")
    assert torch.allclose(block(x, e), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_that_of_torch(heads):
    ours = random_weights(SelfAttention(8, heads, groups=2)).double()
    theirs = nn.MultiheadAttention(8, heads, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = images(3, 8, 2, 5, dtype=torch.float64)
    tokens = ours.norm(x).flatten(2).mT
    expected = x + theirs(tokens, tokens, tokens)[0].mT.reshape(x.shape)
    assert torch.allclose(ours(x), expected, rtol=1e-10, atol=1e-12)


def test_in_bfloat16_the_time_embedding_keeps_float32():
    net, seen = small().bfloat16(), []
    net.time[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    t = 4.567
    output = net(images(1, 1, 4, 4).bfloat16(), torch.tensor([t]))
    assert output.dtype == torch.bfloat16
    rates = [0.1 * (4.0 / 0.1) ** (k / 3) for k in range(4)]
    expected = [math.cos(rate * t) for rate in rates] + [math.sin(rate * t) for rate in rates]
    # one rounding to bfloat16; a phase of 18 rad held in bfloat16 would be off by 0.06
    assert torch.allclose(seen[0][0].double(), torch.tensor(expected).double(), rtol=2**-8, atol=1e-6)


def test_a_bfloat16_network_serves_a_float32_state():
    exact, half = small(), small().bfloat16()
    x = images(4, 1, 8, 8)
    outputs = [sk.ScoreModel(net, sk.VP(), "v", "half-log-snr").x0(x, 0.5) for net in (exact, half)]
    assert outputs[1].dtype == torch.float32
    difference = (outputs[0] - outputs[1]).square().mean().sqrt()
    assert 0 < difference < 0.03 * outputs[0].square().mean().sqrt()


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, in jvp
def test_forward_and_reverse_derivatives_agree():
    net, t = small().double(), torch.tensor([0.5], dtype=torch.float64)
    x, v, w = (images(1, 1, 4, 4, seed=s, dtype=torch.float64) for s in (1, 2, 3))
    _, forward = torch.func.jvp(lambda x: net(x, t), (x,), (v,))
    _, pullback = torch.func.vjp(lambda x: net(x, t), x)
    assert (w * forward).sum().item() == pytest.approx((pullback(w)[0] * v).sum().item(), rel=1e-10)


def test_no_label_means_the_null_class():
    net, x, t = small(classes=3), images(2, 1, 4, 4), torch.zeros(2)
    assert torch.equal(net(x, t), net(x, t, label=torch.tensor([3, 3])))
    assert not torch.allclose(net(x, t), net(x, t, label=torch.tensor([0, 1])))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet(widths=(8, 12), groups=8), "12 is not divisible by groups=8"),
        (lambda: UNet(widths=(8, 16), groups=8, heads=3), "heads=3"),
        (lambda: small()(torch.zeros(1, 1, 5, 4), torch.zeros(1)), "divisible by 2"),
        (lambda: small()(torch.zeros(1, 1, 4, 4), torch.zeros(1), label=torch.tensor([0])), "classes=0"),
        (lambda: save_network("x.safetensors", nn.Linear(1, 1), {}), "Linear cannot be stored"),
        (lambda: load_network("no-such-file.safetensors"), "no-such-file"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("net", [small(classes=4, heads=1, blocks=2), random_weights(Classifier(width=4))])
def test_a_stored_network_comes_back_with_its_bits(tmp_path, net):
    path = tmp_path / "folder" / "net.safetensors"
    metadata = {"steps": 3, "lr": 0.1, "nested": {"a": [1, 2]}}
    save_network(path, net, metadata)
    assert [entry.name for entry in path.parent.iterdir()] == ["net.safetensors"]
    again, read = load_network(path)
    assert read == metadata
    assert type(again) is type(net)
    assert again.config == net.config
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


@pytest.mark.parametrize(
    "process",
    [sk.VP(beta_max=10.0), sk.SubVP(), sk.VE(0.02, 30.0), sk.CosineVP(), sk.DiscreteVP.linear(50), sk.Flow(), sk.EDM()],
    ids=lambda process: type(process).__name__,
)
def test_a_process_survives_json(process):
    assert build_process(json.loads(json.dumps(describe_process(process)))) == process


def test_a_stored_model_knows_its_process_prediction_and_time(tmp_path):
    net, path = small(), tmp_path / "net.safetensors"
    process = sk.VE(0.02, 30.0)
    save_network(path, net, {"process": describe_process(process), "predicts": "x0", "time": "edm"})
    x = images(2, 1, 4, 4)
    expected = sk.ScoreModel(net, process, "x0", "edm").score(x, 0.3)
    # not to the bit: where weights lie in memory decides how some processors round
    torch.testing.assert_close(load_model(path).score(x, 0.3), expected)
    save_network(path, net, {})
    with pytest.raises(ValueError, match="names no process"):
        load_model(path)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    save_network(path, small(), {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="no readable safetensors file"):
        load_network(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="save_network writes it"):
        load_network(path)
    save_file({"weight": torch.zeros(1)}, path, metadata={"network": "unett", "config": "{}", "metadata": "{}"})
    with pytest.raises(ValueError, match="did you mean 'unet'"):
        load_network(path)


def record():
    return json.loads((WEIGHTS / "digits.json").read_text())


def test_the_shipped_files_are_small_and_say_how_they_were_made():
    sizes = {name: len((WEIGHTS / name).read_bytes()) for name in ("digits.safetensors", "digits-features.safetensors")}
    assert max(sizes.values()) < 2e6
    with resources.as_file(WEIGHTS / "digits.safetensors") as path:
        net, metadata = load_network(path)
    assert metadata.items() <= record().items()
    assert record()["parameters"] == sum(parameter.numel() for parameter in net.parameters())
    assert metadata["seconds"] < 15 * 60


def test_the_shipped_record_is_of_the_recipe_in_the_code():
    assert {**asdict(recipe.TASK), **asdict(recipe.PLAN)}.items() <= record().items()
    assert describe_process(digits_model().process) == record()["process"]


def test_the_shipped_losses_are_what_the_network_has():
    model, data, made = digits_model(), digits(), record()
    for images, name in ((data.train, "train_loss"), (data.held_out, "held_out_loss")):
        draws = range(20)
        with torch.no_grad():
            risks = [denoising_risk(model, images, made["times"], made["seed"] + 1, draw).item() for draw in draws]
        error = statistics.stdev(risks) * math.sqrt(2 / len(risks))  # the record's draws were others
        assert error < 0.01
        assert sum(risks) / len(risks) == pytest.approx(made[name], abs=3 * error)


def gaussian_loss(data, t):
    """Mean squared eps error on held-out images of Wiener's filter for the train images' mean and covariance."""
    process, x0 = sk.VP(), data.held_out.flatten(1).double()
    train = data.train.flatten(1).double()
    eps = noise.normal(5, 0, torch.arange(len(x0)), x0.shape[1:], torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    covariance = alpha**2 * torch.cov(train.T) + sigma**2 * torch.eye(64, dtype=torch.float64)
    centred = alpha * x0 + sigma * eps - alpha * train.mean(0)
    return (sigma * torch.linalg.solve(covariance, centred.T).T - eps).square().mean().item()


# under more noise the data look Gaussian: at −1 a kernel denoiser over the whole train split gains 2% only
@pytest.mark.parametrize(("half_log_snr", "share"), [(3.0, 0.8), (2.0, 0.8), (1.0, 0.8), (0.0, 0.8), (-1.0, 1.0)])
def test_the_shipped_network_denoises_better_than_the_best_linear_filter(half_log_snr, share):
    data, model = digits(), digits_model()
    t = sk.VP().t_of_half_log_snr(half_log_snr)
    eps = noise.normal(5, 0, torch.arange(len(data.held_out)), (1, 8, 8))
    with torch.no_grad():
        x = sk.VP().perturb(data.held_out, t, eps)
        loss = (model.eps(x, t) - eps).square().mean().item()
        labelled = (model.eps(x, t, label=data.held_out_labels) - eps).square().mean().item()
    assert loss < share * gaussian_loss(data, t)
    assert labelled < 1.01 * loss


def test_at_t_min_the_shipped_network_does_not_add_noise():
    data, model = digits(), digits_model()
    t = model.process.t_min
    eps = noise.normal(6, 0, torch.arange(len(data.held_out)), (1, 8, 8))
    with torch.no_grad():
        x0 = model.x0(model.process.perturb(data.held_out, t, eps), t)
    left_alone = (model.process.sigma(t) / model.process.alpha(t)) ** 2  # mean squared error of x/α
    assert (x0 - data.held_out).square().mean().item() < left_alone


def test_the_shipped_features_tell_digits_apart():
    data = digits()
    with resources.as_file(WEIGHTS / "digits-features.safetensors") as path:
        net, metadata = load_network(path)
    accuracy = (net(data.held_out).argmax(1) == data.held_out_labels).double().mean().item()
    assert accuracy == pytest.approx(metadata["held_out_accuracy"], abs=0.002)
    assert accuracy > 0.97
    features = digits_features()(data.held_out)
    assert features.shape == (596, 32)
    assert torch.equal(net.classify(features), net(data.held_out))


def test_the_command_writes_what_ships_and_repeats_the_features(tmp_path):
    made = recipe.train_digits(tmp_path, replace(recipe.PLAN, steps=2), progress=False)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "digits-features.safetensors", "digits.json", "digits.safetensors",
    ]  # fmt: skip
    assert json.loads((tmp_path / "digits.json").read_text()) == made
    assert load_model(tmp_path / "digits.safetensors").predicts == record()["predicts"]
    assert made["features"]["held_out_accuracy"] == pytest.approx(record()["features"]["held_out_accuracy"], abs=0.01)


def test_training_leaves_the_global_generator_and_the_thread_count_alone(tmp_path):
    torch.manual_seed(3)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    recipe.train_digits_features(tmp_path / "f.safetensors", digits(), Optimisation(2, lr=1e-3))
    assert torch.equal(state, torch.get_rng_state())
    assert threads == torch.get_num_threads()


def test_labels_reach_the_loss():
    model, data = digits_model(), digits()
    rows = batch_rows(len(data.train), 64, 0, 0)
    x0, labels = data.train[rows], data.train_labels[rows]
    eps = noise.normal(0, 0, torch.arange(64), (1, 8, 8))
    t = torch.full((64,), 0.6)
    with torch.no_grad():
        right = denoising_loss(model, x0, t, eps, label=labels).mean()
        wrong = denoising_loss(model, x0, t, eps, label=(labels + 1) % 10).mean()
    assert right < 0.95 * wrong


def test_the_shipped_few_step_model_is_of_its_recipe_and_needs_few_evaluations():
    made = json.loads((WEIGHTS / "digits-few.json").read_text())
    assert {**asdict(recipe.FEW_TASK), **asdict(recipe.FEW_PLAN)}.items() <= made.items()
    assert len((WEIGHTS / "digits-few.safetensors").read_bytes()) < 2e6
    features, data = digits_features(), digits().train

    def distance(model, **how):
        with torch.no_grad():
            x = sk.sample(model, (1024, 1, 8, 8), seed=0, **how).x
            return float(sk.metrics.frechet_distance(features(x), features(data)))

    process = digits_few_model().process
    grid = [process.t_max, float(process.t_of_half_log_snr(-math.log(0.7))), process.t_min]
    two = distance(digits_few_model(), solver="consistency", grid=grid, nfe=2)
    assert two < 0.5 * distance(digits_model(), nfe=4)
    assert distance(digits_few_model(), solver="consistency", nfe=1) < 0.2 * distance(digits_model(), nfe=2)


def test_the_command_writes_the_few_step_model(tmp_path):
    made = recipe.train_digits_few(tmp_path, replace(recipe.FEW_PLAN, steps=2), progress=False)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["digits-few.json", "digits-few.safetensors"]
    assert json.loads((tmp_path / "digits-few.json").read_text()) == made
    assert load_model(tmp_path / "digits-few.safetensors").predicts == "v"
