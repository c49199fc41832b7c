"""The model of rounding: what each operation may be off by, and what a network makes of it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import SAMPLE
from imgcls_infer.golden import GoldenSample
from imgcls_infer.manifest import TOLERANCES
from imgcls_infer.preprocess import preprocess
from imgcls_infer.steps import shorthand

from imgcls.data.folder import scan_folder
from imgcls.data.packed import encode_png
from imgcls.networks.classifier import Classifier
from imgcls.networks.precision import narrow
from imgcls.parity import operations, rounding
from imgcls.parity.rounding import (
    MOST_INT8,
    SPREAD,
    logit_deviation,
    tolerances,
    typical_pictures,
)
from imgcls.parity.runtimes import run_module
from imgcls.parity.verify import default_tolerance


@pytest.mark.parametrize("louder", [1, 1000])
def test_what_passes_in_int8_is_bounded_however_much_rounding_could_do(trained, louder):
    classifier = trained[1].classifier()
    with torch.no_grad():
        list(classifier.parameters())[-2].mul_(louder)  # the last layer's weights: logits that rounding moves far
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    allowed = tolerances(classifier, pixels, "int8").probability
    assert TOLERANCES["int8"] <= allowed <= MOST_INT8
    assert (allowed == MOST_INT8) == (louder > 1)


def test_the_tolerance_grows_with_the_unit_and_with_the_depth(trained):
    fine, half, brain = (default_tolerance(trained[1], precision) for precision in ("fp32", "fp16", "bf16"))
    assert fine * 300 < half < brain  # 2^13 for the unit, less for sums in float32
    shallow, deep = (stack_of(layers) for layers in (2, 20))
    pixels = typical_pictures([], 8)
    assert 0 < 1.5 * logit_deviation(shallow, pixels) < logit_deviation(deep, pixels)


def stack_of(layers):
    """Convolutions that keep the size of what they get."""
    torch.manual_seed(0)
    widths = [3, *[8] * (layers - 1)]
    convolutions = [torch.nn.Conv2d(width, 8, 3, padding=1, bias=False) for width in widths]
    for convolution in convolutions:
        torch.nn.init.orthogonal_(convolution.weight)
    network = torch.nn.Sequential(*convolutions, torch.nn.Flatten(1))
    return Classifier(network, 8, (0.5,) * 3, (0.25,) * 3).eval()


def test_a_single_layers_deviation_is_the_formulas(monkeypatch):
    """One linear layer, noise on its output alone: sigma^2 = u^2 / 3 ((n/2 + 1) Q + (n/3 + 1) y^2)."""
    monkeypatch.setattr(rounding, "_DRAWS", 400)
    layer = torch.nn.Linear(3 * 16, 5)
    network = torch.nn.Sequential(torch.nn.Flatten(1), layer)
    classifier = Classifier(network, 4, (0.0,) * 3, (1 / 255,) * 3).eval()  # pixels as they are
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), np.uint8)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).flatten(1).double()
    w, y = layer.weight.detach().double(), layer(x.float()).detach().double()
    variance = 2.0**-48 / 3 * ((24 + 1) * (x**2 @ (w**2).T) + (16 + 1) * y**2)
    expected = float(variance.max() ** 0.5)  # the normalisation multiplies by 1 and adds 0, and is found exact
    assert logit_deviation(classifier, pixels) == pytest.approx(expected, rel=0.12)


def noted(run, precision):
    """What an operation gives, and the variance that is noted for its own rounding."""
    seen = rounding._Rounding()
    with torch.no_grad(), seen.of(precision):
        y = run()
    return y, seen.noise[-1][0][0].deviation ** 2


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


BIAS = drawn(4)
PRODUCTS = {  # name: (x, weight, the weight's axes of one output channel, products a value sums, bias added, operation)
    "linear": ((3, 6), (4, 6), (1,), 6, lambda x, w, b: F.linear(x, w, b)),
    "mm": ((3, 6), (6, 4), (0,), 6, lambda x, w, b: x @ w),
    "addmm": ((3, 6), (6, 4), (0,), 6, lambda x, w, b: torch.addmm(b, x, w)),
    "bmm": ((2, 3, 6), (2, 6, 4), (1,), 6, lambda x, w, b: torch.bmm(x, w)),
    "baddbmm": ((2, 3, 6), (2, 6, 4), (1,), 6, lambda x, w, b: torch.baddbmm(b.expand(2, 3, 4), x, w)),
    "convolution": ((3, 2, 5, 5), (4, 2, 3, 3), (1, 2, 3), 18, lambda x, w, b: F.conv2d(x, w, b, padding=1)),
    "in groups": ((3, 4, 5, 5), (4, 2, 3, 3), (1, 2, 3), 18, lambda x, w, b: F.conv2d(x, w, b, 2, 1, groups=2)),
    "transposed": ((3, 2, 5, 5), (2, 4, 3, 3), (0, 2, 3), 18, lambda x, w, b: F.conv_transpose2d(x, w, b, 2)),
    "transposed in groups": (
        *((3, 6, 5, 5), (6, 2, 3, 3), None, 27),
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, groups=2),
    ),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_the_variance_of_a_product_is_that_of_the_page(kind, precision):
    """By the formulas in imgcls.parity.operations, term by term."""
    x_shape, w_shape, shared, n, operation = PRODUCTS[kind]
    if precision == "int8" and shared is None:
        return
    x, weight = drawn(*x_shape), drawn(*w_shape)
    if shared:  # channels of unlike sizes
        size = [1 if axis in shared else length for axis, length in enumerate(w_shape)]
        weight *= torch.linspace(0.5, 3, int(np.prod(size))).view(size)
    y, found = noted(lambda: operation(x, weight, BIAS), precision)
    products = operation(x**2, weight**2, 0 * BIAS)
    if precision == "int8":
        w_step = weight.abs().amax(shared, keepdim=True) / 127
        x_step = (x.max() - x.min()) / 255
        # around a border a convolution has fewer weights: the model counts them all
        rounded_inputs = (weight**2).sum(shared, keepdim=True) * x_step**2
        if y.dim() == 4:
            rounded_inputs = rounded_inputs.view(-1, 1, 1)
        elif kind == "linear":
            rounded_inputs = rounded_inputs.flatten()
        expected = (operation(x**2, (w_step**2).expand_as(weight), 0 * BIAS) + rounded_inputs) / 12
    elif precision == "fp32":
        expected = 2.0**-48 / 3 * ((n / 2 + 1) * products + n / 3 * y**2 + y**2)
    else:
        unit = 2.0**-11 if precision == "fp16" else 2.0**-8
        expected = unit**2 / 3 * (2 * products + y**2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("operation", "terms", "average"),
    [
        (lambda x: x.mean((2, 3)), 24, True),
        (lambda x: x.sum(1), 3, False),
        (lambda x: F.avg_pool2d(x, 2), 4, True),
        (lambda x: F.adaptive_avg_pool2d(x, (2, 3)), 4, True),
    ],
    ids=["mean", "sum", "pool", "adaptive pool"],
)
def test_the_variance_of_a_sum_is_that_of_a_product_with_equal_weights(operation, terms, average):
    x = drawn(2, 3, 4, 6)
    y, found = noted(lambda: operation(x), "fp32")
    squares = operation(x**2) / (terms if average else 1)
    torch.testing.assert_close(found, 2.0**-48 / 3 * (terms / 2 * squares + (terms / 3 + 1) * y**2), rtol=1e-4, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("known", [True, False])
def test_the_variance_of_another_operation_is_measured(known, precision):
    """In float64 where it can run so, or from inputs that are rounded; as other libraries do it, whose error in float32
    may be four times torch's."""
    x = 10 * drawn(5, 7)
    operation = torch.exp if known else float32_alone
    y, found = noted(lambda: operation(x), precision)
    unit = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}[precision]
    if precision != "fp32":
        e, factor = y - operation(x.to(torch.float16 if precision == "fp16" else torch.bfloat16).float()), 1
    else:
        e, factor = (y - x.double().exp() if known else 2.0**-24 * (y.abs() + x.abs().max())), 4
    expected = (factor**2 * (e.double() ** 2 + unit**2 / 3 * y.double() ** 2)).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_model_covers_what_the_runtime_does_and_not_a_hundred_times_it(trained, precision):
    """torch itself in another precision, against the prediction."""
    classifier = trained[1].classifier()
    pixels = np.stack([preprocess(path, shorthand(32)) for path in scan_folder(SAMPLE / "test").paths[::5]])
    other = narrow(classifier, torch.bfloat16) if precision == "bf16" else copy.deepcopy(classifier).double()
    exact = run_module(classifier)(pixels)[0]
    sigma = logit_deviation(classifier, typical_pictures([], 32), precision)
    if precision == "fp32":
        image = torch.from_numpy(pixels).permute(0, 3, 1, 2).double()
        with torch.inference_mode():
            actual = other.network(image * other.scale + other.shift).numpy()
    else:
        actual = run_module(other)(pixels)[0]
    largest = np.abs(actual - exact).max()
    assert sigma * SPREAD / 100 < largest < sigma * SPREAD


def test_a_masks_infinities_are_exact_and_the_others_are_not():
    x, mask = torch.rand(2, 5), torch.full((2, 5), 0.1)
    mask[:, 3:] = float("inf")
    for sign in (1, -1):
        call = operations.Call(torch.ops.aten.add.Tensor, (x, sign * mask), {})
        ((deviation, _),) = call.noise(x + sign * mask, 0, "fp32")
        assert (deviation[:, :3] > 0).any()
        assert not deviation[:, 3:].any()


class Last(torch.nn.Module):
    """A network that ends in one operation, on pixels as they are: float32 [N, 3, 4, 4]."""

    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def forward(self, x):
        return self.operation(x)


def deviation_of(operation, precision="fp32"):
    classifier = Classifier(Last(operation), 4, (0.0,) * 3, (1 / 255,) * 3).eval()
    return logit_deviation(classifier, typical_pictures([], 4), precision)


@torch.library.custom_op("imgcls_tests::float32_alone", mutates_args=())
def float32_alone(x: torch.Tensor) -> torch.Tensor:
    """An operation that nobody knows, and that has no float64."""
    if x.dtype != torch.float32:
        raise NotImplementedError("float32 alone")
    return x.flatten(1) + 1


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: torch.nn.functional.layer_norm(x, (4, 4)).flatten(1),
        lambda x: torch.nn.functional.group_norm(x, 3).flatten(1),
        lambda x: torch.nn.functional.gelu(x / 100).flatten(1),
        lambda x: torch.nn.functional.silu(x / 100, inplace=True).flatten(1),
        lambda x: x.flatten(1).softmax(1),
        lambda x: x.flatten(1).cumsum(1) / 3,
        lambda x: (x + 1).flatten(1).log(),
        lambda x: torch.nn.functional.interpolate(x, scale_factor=1.7, mode="bicubic").flatten(1),
        lambda x: torch.einsum("ncij,mcij->nm", x, x).div(7),
        lambda x: torch.nn.functional.scaled_dot_product_attention(x / 99, x / 99, x / 99).flatten(1),
        float32_alone,
    ],
    ids=[
        "layer_norm",
        "group_norm",
        "gelu",
        "silu",
        "softmax",
        "cumsum",
        "log",
        "resize",
        "einsum",
        "attention",
        "unknown",
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_operation_that_rounds_never_counts_as_exact(operation, precision):
    assert deviation_of(operation, precision) > 0


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.permute(0, 2, 3, 1).flatten(1),
        lambda x: torch.nn.functional.max_pool2d(x, 2).flatten(1),
        lambda x: torch.cat([x.relu_(), x.roll(1, 3)], 1)[:, 2:].flatten(1),
        lambda x: torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest").flatten(1),
    ],
    ids=["permuted", "maximum", "rectified and moved", "nearest"],
)
def test_an_operation_that_moves_values_is_exact(operation):
    assert deviation_of(operation) == 0


def one_by_one(x, groups, gain):
    """A normalisation whose mean and variance are sums of float32, one value after the other, over [groups, cells]."""
    cells = x.reshape(groups, -1).numpy()
    mean = np.cumsum(cells, 1, dtype=np.float32)[:, -1:] / np.float32(cells.shape[1])
    centred = cells - mean
    variance = np.cumsum(centred**2, 1, dtype=np.float32)[:, -1:] / np.float32(cells.shape[1])
    return torch.from_numpy(centred / np.sqrt(variance + np.float32(1e-5))).reshape(x.shape) * gain


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("offset", [0.0, 2.0], ids=["scaled", "moved"])
@pytest.mark.parametrize("kind", ["group", "layer"])
def test_what_the_cells_of_a_normalisation_have_in_common_goes_through_an_average(kind, offset, seed):
    """Its mean and its variance, which another library may sum one value after the other."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 16, 48, 48, generator=generator) * 3 + offset
    if not offset:
        x[:, :, :16, :16] += 3  # an average that is not 0, so that a factor changes it
    gain = torch.rand(16, generator=generator).reshape(1, 16, 1, 1) + 0.5

    def normed():
        if kind == "group":
            return F.group_norm(x, 1, gain.flatten(), None)
        return F.layer_norm(x, x.shape[1:], gain[0].expand(x.shape[1:]).contiguous(), None)

    def run(image, rounds, seen):
        with rounds.of("fp32"):
            average = F.avg_pool2d(value := normed(), 16)
        seen("normed", value)
        seen("average", average)

    ours, theirs = normed(), one_by_one(x, 1, gain)
    sigmas = rounding.deviations(run, np.zeros((1, 2, 2, 3), np.uint8))
    for name, change in (("normed", lambda value: value), ("average", lambda value: F.avg_pool2d(value, 16))):
        difference = float((change(ours) - change(theirs)).abs().max())
        assert difference < SPREAD * 2**0.5 * sigmas[name] < 1e-3


@pytest.mark.parametrize(("side", "count"), [(8, 16), (128, 4), (300, 2)])
def test_typical_pictures_are_the_samples_and_then_noise(side, count):
    colours = [(value, 0, 255 - value) for value in (10, 20, 30)]
    samples = [GoldenSample(encode_png(np.full((side, side, 3), colour, np.uint8)), ()) for colour in colours]
    pictures = typical_pictures(samples, side)
    assert pictures.shape == (count, side, side, 3)
    assert [tuple(picture[0, 0]) for picture in pictures[:3]] == colours[:count]
    assert all(picture.std() > 50 for picture in pictures[3:])


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_the_cells_of_a_normalisation_have_its_gain_and_their_group(groups):
    generator = torch.Generator().manual_seed(groups)
    x, weight = torch.randn(3, 8, 5, 4, generator=generator), torch.rand(8, generator=generator) + 0.5
    plain, y = F.group_norm(x, groups), F.group_norm(x, groups, weight)
    norm = operations._group_norm(y, x, weight, None, 3, 8, 20, groups, 1e-5)
    assert norm.x.shape == (3 * groups, 160 // groups)
    torch.testing.assert_close(norm.y, norm.gain * plain.reshape(norm.y.shape))
    assert operations._group_norm(y, x, None, None, 3, 8, 20, groups, 1e-5).gain.unique().tolist() == [1.0]
    gain = torch.rand(5, 4, generator=generator) + 0.5
    y = F.layer_norm(x, (5, 4), gain)
    norm = operations._layer_norm(y, x, (5, 4), gain, None, 1e-5)
    torch.testing.assert_close(norm.y, norm.gain * F.layer_norm(x, (5, 4)).reshape(24, 20))


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_deviation_is_that_of_the_worst_picture_whichever_batch_it_is_in(order):
    def run(image, rounds, seen):
        with rounds.of("fp32"):
            y = image.float() * 0.3
        seen("y", y)

    pixels = np.stack([np.full((300, 300, 3), value, np.uint8) for value in (200, 1)])
    found, worst = (rounding.deviations(run, chosen)["y"] for chosen in (pixels[order], pixels[:1]))
    assert rounding.batch_size((300, 300)) == 1
    assert found == pytest.approx(worst, rel=0.3)


@pytest.mark.parametrize("factor", [1e2, 1e4, 1e6, 1e9])
def test_an_answer_that_hangs_on_rounding_has_a_deviation_as_large_as_its_error(factor):
    """A sine of up to 1e10 turns: magnified noise moves it no further than noise of the real size does."""

    def operation(x):
        return (x.flatten(1) * (factor / 7)).sin()

    pixels = torch.from_numpy(typical_pictures([], 4)).permute(0, 3, 1, 2)
    error = (operation(pixels.float()) - operation(pixels.double())).abs().max()
    assert error / SPREAD < deviation_of(operation) < max(100 * error, 1.01)


def test_noise_runs_leave_the_network_as_it_was(trained):
    classifier = trained[1].classifier()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    first, second = (logit_deviation(classifier, typical_pictures([], 32)) for _ in range(2))
    assert first == second
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())


LAST = 8 * 2**-24  # of softmax


@pytest.mark.parametrize(
    ("precision", "logits", "novelty", "expected"),
    [
        ("fp32", 1e-4, 2e-4, (6 * 2**0.5 * 1e-4 / 2 + LAST, 6 * 2**0.5 * 2e-4 + 7 * LAST)),
        ("fp16", 9, 8, (1.0, 6 * 2**0.5 * 8 + 7 * LAST)),
        ("int8", 1e-4, 2e-4, (TOLERANCES["int8"], 7 * TOLERANCES["int8"])),
        ("int8", 9, 8, (0.4, 7 * 0.4)),
        ("int8", 0.06, 0.3, (6 * 2**0.5 * 0.03 + LAST, 6 * 2**0.5 * 0.3 + 7 * LAST)),
    ],
)
def test_a_tolerance_is_of_two_runs_and_the_softmax_and_that_of_a_novelty_a_share_of_its_largest_value(
    monkeypatch, precision, logits, novelty, expected
):
    monkeypatch.setattr(rounding, "output_deviations", lambda *_: {"logits": logits, "novelty": novelty})
    pixels = np.stack([np.full((300, 300, 3), value, np.uint8) for value in (2, 7, 1)])  # a batch each

    def classifier(batch):
        return None, None, -batch[:, 0, 0, 0].float()

    found = tolerances(classifier, pixels, precision)
    assert (found.probability, found.novelty) == pytest.approx(expected)


def test_values_that_magnified_noise_bends_have_the_deviation_of_real_noise_where_that_is_larger():
    by_scale = {
        1024.0: {"straight": 1e-5, "bent": 1e-3, "flat": 2e-3},
        1.0: {"straight": 9, "bent": 5e-3, "flat": 1e-4},
    }
    sizes = dict.fromkeys(("straight", "bent", "flat"), 1.0)
    found = rounding.sigmas_by(by_scale.__getitem__, sizes, magnified=True)
    assert found == {"straight": 1e-5, "bent": 5e-3, "flat": 2e-3}
    assert rounding.sigmas_by(by_scale.__getitem__, sizes, magnified=False) == by_scale[1.0]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_the_normalisation_is_computed_in_float32_in_every_precision(precision):
    classifier = Classifier(Last(lambda x: x.flatten(1)), 4, (0.3,) * 3, (0.7,) * 3).eval()
    pixels = typical_pictures([], 4)
    assert 0 < logit_deviation(classifier, pixels, precision) < 3 * logit_deviation(classifier, pixels)


@pytest.mark.parametrize(("size", "count"), [((8, 64), 128), ((64, 100), 10), ((256, 257), 1)])
def test_a_batch_has_as_many_pictures_as_there_are_pixels_for(size, count):
    assert rounding.batch_size(size) == count
