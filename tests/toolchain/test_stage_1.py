"""Other libraries' preprocessing as steps: the same pixels as theirs, or an error that names the step."""

from __future__ import annotations

import importlib
from importlib.metadata import version as version_of
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import load_benchmark
from hypothesis import given, settings
from hypothesis import strategies as st
from imgcls_infer.resample import run_steps
from imgcls_infer.steps import Crop, Decode, Pad, Preprocessing, Resize, preprocessing_from, shorthand
from PIL import Image
from PIL import __version__ as pillow
from torch import nn
from torchvision.models import ResNet50_Weights, VGG16_Weights
from torchvision.models.detection import SSD300_VGG16_Weights

from imgcls.errors import ImgclsError
from imgcls.networks.channels import FromRgb
from imgcls.networks.classifier import Classifier
from imgcls.networks.stage_1 import AS_PILLOW_OPENS, of_timm, of_torchvision, of_transformers
from imgcls.networks.stage_1.result import stage_1
from imgcls.networks.stage_1.transformers import MODEL_TYPES, PROCESSORS

LENGTHS = st.integers(1, 150)
QUICK = settings(max_examples=60)
VIT = {"image_processor_type": "ViTImageProcessor"}
SAME_PASSES = pytest.mark.skipif(
    int(pillow.partition(".")[0]) < 13, reason="Pillow up to 12 takes the width first whatever the sizes"
)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def ours(stage_1, image):
    return np.asarray(run_steps(image, stage_1.preprocessing.steps))


def entry(**transforms):
    """Like an entry of a weights enum, with transforms of one's own."""
    from torchvision.transforms._presets import ImageClassification

    return SimpleNamespace(
        transforms=lambda **others: ImageClassification(**{**transforms, **others}), meta={"categories": ["a", "b"]}
    )


# --- the benchmark's small part ---


@SAME_PASSES
@pytest.mark.parametrize("library", ["torchvision", "timm", "transformers"])
def test_every_pixel_is_the_librarys_own(library, tmp_path):
    pytest.importorskip(library)
    benchmark = load_benchmark("preprocessing")
    taken = [index for index in benchmark.SMALL if max(benchmark.PICTURES[index][1:3]) < 520]
    pictures = benchmark.write_pictures(tmp_path, sorted(benchmark.OWN.glob("*.jpg")), taken)
    with benchmark.ThreadPoolExecutor(1) as pool:
        outcomes = [benchmark.compare(row, pictures, pool) for row in benchmark.LIBRARIES[library](True)]
    counted = [outcome for outcome in outcomes if not outcome.row.note]
    assert len(counted) >= 5
    assert [outcome for outcome in counted if not outcome.exact] == []
    assert max((outcome.level for outcome in outcomes if outcome.row.note), default=1) > 0  # the comparison can fail


# --- random sizes ---


@SAME_PASSES
@QUICK
@given(LENGTHS, LENGTHS, st.integers(1, 40), st.integers(1, 40))
def test_torchvisions_transforms_of_any_size(width, height, resize, crop):
    weights = entry(resize_size=resize, crop_size=crop, mean=(0, 0, 0), std=(1, 1, 1))
    image = noise(width, height)
    expected = (weights.transforms()(image) * 255).round().to(torch.uint8).permute(1, 2, 0)
    np.testing.assert_array_equal(ours(of_torchvision(weights), image), expected)


@SAME_PASSES
@QUICK
@given(
    LENGTHS,
    LENGTHS,
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([0.5, 0.875, 0.9, 1.0, 1.15]),
    st.sampled_from(["center", "squash", "border"]),
)
def test_timms_transforms_of_any_size(width, height, size, crop_pct, crop_mode):
    create_transform = pytest.importorskip("timm.data").create_transform
    config = {
        "input_size": (3, *size),
        "crop_pct": crop_pct,
        "crop_mode": crop_mode,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
    }
    image = noise(width, height)
    try:
        expected = create_transform(**config, normalize=False)(image).permute(1, 2, 0)
    except (ValueError, ZeroDivisionError):  # a side of 0 pixels
        return
    np.testing.assert_array_equal(ours(of_timm(config), image), expected)


@SAME_PASSES
@QUICK
@given(LENGTHS, LENGTHS, st.integers(1, 40), st.integers(1, 40), st.sampled_from(["MobileViT", "Bit", "Levit"]))
def test_transformers_processors_of_any_size(width, height, resize, crop, family):
    transformers = pytest.importorskip("transformers")
    config = {"size": {"shortest_edge": resize}, "crop_size": {"height": crop, "width": crop}, "do_convert_rgb": False}
    processor = getattr(transformers, f"{family}ImageProcessorPil")(**config)
    image = noise(width, height)
    options = {"do_rescale": False, "do_normalize": False, "input_data_format": "channels_last"}
    if family == "MobileViT":
        options["do_flip_channel_order"] = False
    expected = np.asarray(processor(image, **options)["pixel_values"][0]).transpose(1, 2, 0)
    found = ours(of_transformers({**config, "image_processor_type": f"{family}ImageProcessor"}), image)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("height", "width", "side"), [(288, 512, 392), (225, 300, 546), (1704, 2272, 546)])
def test_timms_rounding_of_a_half_is_not_half_even(height, width, side):
    """Sizes that people have, at the two sizes of timm's networks with a border."""
    targets = {
        name: Resize("long", (side, side), "bicubic", name).target(height, width) for name in ("half_even", "ratio")
    }
    assert targets["ratio"] == (round(height / (width / side)), side)
    assert targets["ratio"] != targets["half_even"]


@pytest.mark.parametrize(
    ("length", "half_even", "floor"), [(5, -1, -2), (6, -1, -1), (8, 0, 0), (11, 2, 1), (13, 2, 2)]
)
def test_the_odd_line_of_a_crop_lies_where_each_library_has_it(length, half_even, floor):
    for offset, start in (("half_even", half_even), ("floor", floor)):
        assert Crop((8, 8), offset).box(length, 8)[1] == start


# --- what is read ---


def test_a_weights_entry_gives_steps_normalisation_classes_and_source():
    found = of_torchvision(ResNet50_Weights.IMAGENET1K_V2)
    assert found.preprocessing.steps == (Resize("short", (232, 232)), Crop((224, 224)))
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert len(found.classes) == 1000
    assert found.classes[0] == "tench"
    name = "ResNet50_Weights.IMAGENET1K_V2"
    assert found.source == {
        "library": "torchvision",
        "version": version_of("torchvision"),
        "name": name,
        "max_level": 0,
    }
    assert not found.bgr
    assert of_torchvision(VGG16_Weights.IMAGENET1K_FEATURES).std == (1 / 255,) * 3


def test_a_processors_labels_are_those_that_are_given():
    assert of_transformers(VIT, classes=["moth", "ant"]).classes == ("moth", "ant")
    assert of_transformers(VIT).classes is None


def test_what_a_mode_can_say_stays_that_mode():
    """Files of such networks are written as schema 1, which old predictors read."""
    config = {"input_size": (3, 64, 64), "crop_pct": 1.0, "interpolation": "bicubic"}
    assert of_timm(config).preprocessing == shorthand(64, "crop", "bicubic")
    assert of_timm({**config, "crop_mode": "squash"}).preprocessing == shorthand(64, "squash", "bicubic")
    vit = of_transformers({"size": 64}, "vit")
    assert vit.preprocessing == shorthand(64, "squash", "bilinear")


def test_pictures_are_upright_and_over_white_unless_asked():
    assert of_torchvision(ResNet50_Weights.DEFAULT).preprocessing.decode == Decode()
    asked = of_torchvision(ResNet50_Weights.DEFAULT, AS_PILLOW_OPENS).preprocessing
    assert asked.decode == Decode(exif=False, alpha="drop")
    assert preprocessing_from(asked.to_dict()) == asked
    for read, config in ((of_timm, {}), (of_transformers, VIT)):
        assert read(config).preprocessing.decode == Decode()
        assert read(config, decode=AS_PILLOW_OPENS).preprocessing.decode == AS_PILLOW_OPENS


def test_timms_border_is_the_mean_colour_and_its_test_size_is_taken_where_asked():
    config = {"input_size": (3, 32, 48), "test_input_size": (3, 40, 40), "test_crop_pct": 1.0, "crop_mode": "border"}
    assert of_timm(config).preprocessing.steps == (
        Resize("long", (36, 54), "bicubic", "ratio"),
        Pad((32, 48), (124, 116, 104)),
        Crop((32, 48)),
    )
    larger = of_timm(config, test_size=True).preprocessing
    assert larger.size == (40, 40)
    assert len(larger.steps) == 2


@pytest.mark.parametrize("given", [{}, {"crop_pct": None, "mean": None, "interpolation": ""}], ids=str)
def test_what_a_timm_configuration_leaves_out_is_timms_own(given):
    found = of_timm(given)
    assert found.preprocessing == Preprocessing((224, 224), (Resize("short", (256, 256), "bicubic"), Crop((224, 224))))
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (found.source["library"], found.source["name"], found.classes) == ("timm", "pretrained_cfg", None)


def test_timms_defaults_are_the_librarys():
    resolve = pytest.importorskip("timm.data").resolve_data_config
    for config in ({}, {"input_size": (3, 64, 96)}, {"crop_pct": 0.9, "interpolation": "bilinear"}):
        assert of_timm(config) == of_timm(resolve({}, pretrained_cfg={"tag": "", **config}))


@pytest.mark.parametrize(
    ("test", "size", "scaled"),
    [
        ({}, 32, 64),
        ({"test_input_size": (3, 40, 40)}, 40, 80),
        ({"test_crop_pct": 0.25}, 32, 128),
        ({"test_input_size": (3, 40, 40), "test_crop_pct": 0.25}, 40, 160),
    ],
)
def test_timms_sizes_for_tests_are_taken_where_it_has_them(test, size, scaled):
    config = {"input_size": (3, 32, 32), "crop_pct": 0.5, **test}
    assert of_timm(config, test_size=True).preprocessing.steps == (
        Resize("short", (scaled, scaled), "bicubic"),
        Crop((size, size)),
    )
    assert of_timm(config) == of_timm({"input_size": (3, 32, 32), "crop_pct": 0.5})


@pytest.mark.parametrize(("named", "name"), [(("a", "b"), "a.b"), (("a", None), "a"), ((None, "b"), "b")])
def test_a_timm_source_is_called_by_architecture_and_tag(named, name):
    architecture, tag = named
    found = of_timm({"architecture": architecture, "tag": tag, "label_names": ["x", "y"]})
    assert found.source == {"library": "timm", "version": version_of("timm"), "name": name, "max_level": 0}
    assert found.classes == ("x", "y")


TYPES = (
    *(
        "beit",
        "bit",
        "clip",
        "convnext",
        "convnextv2",
        "cvt",
        "data2vec-vision",
        "deit",
        "dinat",
        "dinov2",
        "efficientnet",
    ),
    *("focalnet", "hiera", "ijepa", "levit", "mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2"),
    *(
        "poolformer",
        "pvt",
        "pvt_v2",
        "regnet",
        "resnet",
        "siglip",
        "swiftformer",
        "swin",
        "swinv2",
        "vit",
        "vit_mae",
        "vit_msn",
    ),
)


@pytest.mark.parametrize("model_type", TYPES)
def test_a_type_of_model_has_the_processor_that_transformers_gives_it(model_type):
    pytest.importorskip("transformers")
    auto = importlib.import_module("transformers.models.auto.image_processing_auto")
    known = auto.IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type)
    if known is None:
        pytest.skip("this transformers does not know it")
    assert MODEL_TYPES[model_type] in str(known)
    assert of_transformers({}, model_type).source["name"] == f"{MODEL_TYPES[model_type]}Pil"


@pytest.mark.parametrize(
    ("size", "steps"),
    [
        (64, (Resize("exact", (64, 64)),)),
        ([48, 64], (Resize("exact", (48, 64)),)),
        ((48, 64), (Resize("exact", (48, 64)),)),
        ({"height": 48, "width": 64}, (Resize("exact", (48, 64)),)),
        ({"width": 64, "height": 48}, (Resize("exact", (48, 64)),)),
        ({"shortest_edge": 64}, (Resize("short", (64, 64)),)),
    ],
)
def test_a_processors_size_may_be_written_in_any_way(size, steps):
    crop = {"do_center_crop": True, "crop_size": 40}
    found = of_transformers({**VIT, "size": size, **(crop if "shortest_edge" in str(size) else {})}).preprocessing
    assert found.steps == (*steps, *([Crop((40, 40), "floor")] if "shortest_edge" in str(size) else []))


@pytest.mark.parametrize(
    ("processor", "size", "steps"),
    [
        ("ConvNext", {"shortest_edge": 384}, [Resize("exact", (384, 384), "bicubic")]),
        ("ConvNext", {"shortest_edge": 383}, [Resize("short", (437, 437), "bicubic"), Crop((383, 383), "floor")]),
        ("Levit", {"shortest_edge": 100}, [Resize("short", (114, 114), "bicubic"), Crop((224, 224), "floor")]),
        ("Levit", [30, 40], [Resize("exact", (30, 40), "bicubic"), Crop((224, 224), "floor")]),
        ("PoolFormer", {"shortest_edge": 100}, [Resize("short", (111, 111), "bicubic"), Crop((224, 224), "floor")]),
        ("PoolFormer", [100, 100], [Resize("short", (111, 111), "bicubic"), Crop((224, 224), "floor")]),
        ("PoolFormer", [100, 50], [Resize("exact", (111, 55), "bicubic"), Crop((224, 224), "floor")]),
    ],
)
def test_a_processor_with_a_resize_of_its_own_has_its_steps(processor, size, steps):
    found = of_transformers({"image_processor_type": f"{processor}ImageProcessor", "size": size})
    assert found.preprocessing.steps == tuple(steps)


@pytest.mark.parametrize(
    ("config", "mean", "std"),
    [
        ({"image_mean": [0.485, 0.456, 0.406], "image_std": 0.2, "include_top": False}, (0.485, 0.456, 0.406), 0.2),
        ({"image_mean": 0.5, "image_std": 0.5}, 0.5, 0.25),  # include_top divides by the std once more
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False, "include_top": False}, 0.5, 0.5),
        ({"do_rescale": False, "image_mean": 127.5, "image_std": 51, "include_top": False}, 0.5, 0.2),
        (  # an offset belongs to rescaling
            {"do_rescale": False, "rescale_offset": True, "image_mean": 51, "image_std": 102, "include_top": False},
            *(0.2, 0.4),
        ),
    ],
)
def test_rescaling_offset_and_normalising_fold_into_mean_and_std(config, mean, std):
    found = of_transformers({"image_processor_type": "EfficientNetImageProcessor", **config})
    assert found.mean == pytest.approx(mean if isinstance(mean, tuple) else (mean,) * 3, rel=1e-15)
    assert found.std == pytest.approx((std,) * 3, rel=1e-15)


@pytest.mark.parametrize("name", ["ViTImageProcessor", "ViTImageProcessorFast", "ViTImageProcessorPil"])
def test_a_processor_is_known_by_each_of_its_names(name):
    assert of_transformers({"image_processor_type": name}).source["name"] == "ViTImageProcessorPil"
    assert of_transformers({"feature_extractor_type": "ViTFeatureExtractor"}) == of_transformers({}, "swin")


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_defaults_are_those_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    library = getattr(transformers, f"{name}Pil")()
    defaults = {key: value for key, value in library.to_dict().items() if value is not None}
    config = {"image_processor_type": name}
    assert of_transformers({**defaults, **config}) == of_transformers(config)


# --- channels ---


def test_the_order_of_channels_is_turned_in_the_graph(tmp_path):
    ort = importlib.import_module("onnxruntime")
    assert of_transformers({}, "mobilevit").bgr
    assert not of_transformers({"do_flip_channel_order": False}, "mobilevit").bgr
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    image = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    classifier = Classifier(FromRgb(network), 8, (0.0,) * 3, (1.0,) * 3).eval()
    torch.testing.assert_close(classifier(image)[0], network(image.flip(3).permute(0, 3, 1, 2) / 255))
    path = tmp_path / "bgr.onnx"
    torch.onnx.export(classifier, (image,), path, dynamo=True, input_names=["image"], verbose=False)
    found = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": image.numpy()})
    torch.testing.assert_close(torch.from_numpy(found[0]), classifier(image)[0].detach())


# --- what cannot be said ---

REFUSED = {
    "do_pad adds to the right and below after the normalisation, to (256, 256);": {
        **VIT,
        "do_pad": True,
        "pad_size": {"height": 256, "width": 256},
    },
    "do_thumbnail": {**VIT, "do_thumbnail": True},
    "do_resize to {'shortest_edge': 224, 'longest_edge'": {**VIT, "size": {"shortest_edge": 224, "longest_edge": 500}},
    "depends on the picture": {**VIT, "size": {"shortest_edge": 224}},
    "without do_center_crop": {**VIT, "do_resize": False},
    "crop_size is missing": {**VIT, "do_center_crop": True},
    "crop_size {'shortest_edge': 4} lacks": {**VIT, "do_center_crop": True, "crop_size": {"shortest_edge": 4}},
    "resample 'bicubic' is none": {**VIT, "resample": "bicubic"},
    "size '224' is no size": {**VIT, "size": "224"},
    "bad input size: [5000, 5000]": {**VIT, "size": 5000},
    "rescale_factor has to be": {**VIT, "rescale_factor": 0},
    "rescale_factor has to be a positive number, not 'x'": {**VIT, "rescale_factor": "x"},
    "size True is no size": {**VIT, "size": True},
    "size [1, 2, 3] is no size": {**VIT, "size": [1, 2, 3]},
    "size {'height': 'x', 'width': 3} is no size": {**VIT, "size": {"height": "x", "width": 3}},
    "resample -1 is none": {**VIT, "resample": -1},
    "resample 6 is none": {**VIT, "resample": 6},
    "resample True is none": {**VIT, "resample": True},
    "image_std has to be three": {**VIT, "image_std": {"red": 1, "green": 1, "blue": 1}},
    "size {'height': 8, 'width': 8} lacks shortest_edge": {
        **{"image_processor_type": "ConvNextImageProcessor", "size": [8, 8]},
    },
    "use_square_size": {**VIT, "use_square_size": True},
    "do_flip_channel_order": {**VIT, "do_flip_channel_order": True},
    "image_mean has to be three": {**VIT, "image_mean": [0.5]},
    "has to be positive": {**VIT, "image_std": [0.5, 0.0, 0.5]},
    "crop_pct has to be": {"image_processor_type": "ConvNextImageProcessor", "crop_pct": -1, "size": 224},
    "image processor 'SegformerImageProcessor'": {"image_processor_type": "SegformerImageProcessor"},
    "model type 'no'": {},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_processors_step_that_cannot_be_said_is_named(message):
    with pytest.raises(ImgclsError) as error:
        of_transformers(REFUSED[message], "no")
    assert message in str(error.value)
    name = REFUSED[message].get("image_processor_type", "")
    assert str(error.value).startswith(f"transformers {name}" if name in PROCESSORS else "transformers: the steps of ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "more",
    [
        {"do_pad": True, "pad_size": {"height": 224, "width": 224}},
        {"do_center_crop": True, "crop_size": 224},
        {"do_reduce_labels": True, "do_convert_rgb": True},
        {"resample": None, "size": None, "image_mean": None},
    ],
    ids=str,
)
def test_what_changes_no_pixel_is_no_step(more):
    assert of_transformers({**VIT, **more}) == of_transformers(VIT)


@pytest.mark.parametrize(
    ("processor", "ignored"),
    [
        *((name, "do_pad") for name in ("Beit", "ConvNext", "EfficientNet", "MobileNetV2", "MobileViT")),
        ("MobileViT", "do_normalize"),
    ],
)
def test_a_step_that_a_processor_never_takes_is_ignored(processor, ignored):
    config = {"image_processor_type": f"{processor}ImageProcessor", "do_center_crop": False, "size": [64, 48]}
    config |= {"size": {"shortest_edge": 384}} if processor == "ConvNext" else {}
    assert of_transformers({**config, ignored: True}) == of_transformers({**config, ignored: False})


@pytest.mark.parametrize("processor", ["MobileNetV1", "Pvt", "ViT"])
def test_other_processors_take_that_step(processor):
    config = {"image_processor_type": f"{processor}ImageProcessor", "do_pad": True, "pad_size": [300, 400]}
    with pytest.raises(ImgclsError, match=r"do_pad adds .* to \(300, 400\)"):
        of_transformers(config)


@pytest.mark.parametrize("number", range(6))
def test_filters_are_numbered_as_pillow_numbers_them(number):
    expected = Image.Resampling(number).name.lower()
    assert of_transformers({**VIT, "resample": number}).preprocessing.filters == (expected,)


def test_one_number_for_a_size_is_a_square_or_the_shorter_side_and_of_a_crop_always_a_square():
    config = {"image_processor_type": "BitImageProcessor", "size": 64, "crop_size": 40}
    square, plain = (of_transformers({**config, "default_to_square": on}).preprocessing.steps for on in (True, False))
    assert of_transformers(config).preprocessing.steps == plain
    assert plain == (Resize("short", (64, 64), "bicubic"), Crop((40, 40), "floor"))
    assert square == (Resize("exact", (64, 64), "bicubic"), Crop((40, 40), "floor"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"interpolation": "random"}, "interpolation 'random' is none of nearest"),
        ({"crop_mode": "five"}, "crop_mode 'five' is none of center, squash, border"),
        ({"input_size": (1, 28, 28)}, "takes 1 channels"),
        ({"architecture": "net", "tag": "x", "std": (1.0, 1.0)}, "timm net.x: mean and std are three numbers each"),
        ({"crop_mode": "border", "mean": (1.0, 1.0)}, r"mean and std are three numbers each, got \(1.0, 1.0\)"),
        ({"std": (0.0, 0.0, 0.0)}, r"std \[0.0, 0.0, 0.0\] has to be positive"),
    ],
)
def test_a_timm_configuration_that_cannot_be_said_is_named(config, message):
    with pytest.raises(ImgclsError, match=message):
        of_timm(config)


def test_one_number_is_the_mean_or_the_std_of_all_channels():
    found = of_timm({"mean": 0.25, "std": 0.5, "crop_mode": "border"})
    assert (found.mean, found.std) == ((0.25,) * 3, (0.5,) * 3)
    assert found.preprocessing.steps[1].fill == (64, 64, 64)


def test_a_library_that_is_not_installed_has_no_version():
    steps = (Resize("exact", (8, 6)),)
    found = stage_1("no such library", "net", (8, 6), steps, ((0.1, 0.2, 0.3), 0.5), Decode(), ["a"], True)
    assert found.source == {"library": "no such library", "version": "", "name": "net", "max_level": 0}
    assert (found.mean, found.classes, found.bgr) == ((0.1, 0.2, 0.3), ("a",), True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize_size": [40, 30]}, r"resize_size \[40, 30\] is not the length of the shorter side"),
        ({"interpolation": SimpleNamespace(value="area")}, "interpolation 'area' is none of nearest"),
    ],
)
def test_transforms_of_torchvision_of_another_kind_are_named(changes, message):
    transforms = entry(resize_size=40, crop_size=32, mean=(0.0,) * 3, std=(1.0,) * 3).transforms()
    for name, value in changes.items():
        setattr(transforms, name, value)
    with pytest.raises(ImgclsError, match=message):
        of_torchvision(SimpleNamespace(transforms=lambda: transforms, meta={}))


def test_a_crop_of_torchvision_may_have_two_sides():
    transforms = entry(resize_size=40, crop_size=32, mean=(0.0,) * 3, std=(1.0,) * 3).transforms()
    transforms.crop_size = [32, 24]
    found = of_torchvision(SimpleNamespace(transforms=lambda: transforms, meta={}))
    assert found.preprocessing.steps == (Resize("short", (40, 40)), Crop((32, 24)))
    assert found.classes is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.0, 0.0)}, "mean and std are three numbers each"),
        ({"std": (1.0, 0.0, 1.0)}, r"std \[1.0, 0.0, 1.0\] has to be positive"),
        ({"crop_size": 4097}, "bad input size"),
    ],
)
def test_transforms_of_torchvision_that_cannot_be_said_are_named(changes, message):
    sound = {"resize_size": 40, "crop_size": 32, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    assert of_torchvision(entry(**sound)).classes == ("a", "b")
    with pytest.raises(ImgclsError, match=message) as error:
        of_torchvision(entry(**{**sound, **changes}))
    assert "manifest" not in str(error.value)


def test_weights_that_are_no_classifiers_are_refused():
    with pytest.raises(ImgclsError, match="ObjectDetection, not those of a classifier"):
        of_torchvision(SSD300_VGG16_Weights.DEFAULT)
