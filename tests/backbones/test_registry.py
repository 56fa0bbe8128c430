"""The catalogue is facts: each of them is held against the real network."""

import csv
import importlib
import inspect
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.backbones import BACKBONES, Backbone, blocks_of, register_backbone, registry as catalog
from finetune.utils import ConfigError, UsageError

PREPROCESSING = {
    "MobileNet": "mobilenet",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3Small": "mobilenet_v3",
    "MobileNetV3Large": "mobilenet_v3",
    "InceptionV3": "inception_v3",
    "InceptionResNetV2": "inception_resnet_v2",
    "Xception": "xception",
    "VGG16": "vgg16",
    "VGG19": "vgg19",
}
FAMILIES = {
    "EfficientNetV2": "efficientnet_v2",
    "EfficientNetB": "efficientnet",
    "ConvNeXt": "convnext",
    "DenseNet": "densenet",
    "NASNet": "nasnet",
}


def _constructor(row: Backbone) -> Any:
    module, _, name = row.constructor.partition(":")
    return getattr(importlib.import_module(module), name)


def _keras_module(constructor: str) -> Any:
    name = PREPROCESSING.get(constructor)
    name = name or next((module for word, module in FAMILIES.items() if constructor.startswith(word)), None)
    name = name or ("resnet_v2" if constructor.endswith("V2") else "resnet")
    return importlib.import_module(f"keras.applications.{name}")


QUICK = {"efficientnet_lite0", "mobilenet_v2", "tiny"}
ROWS = [pytest.param(row, id=name, marks=[] if name in QUICK else pytest.mark.slow) for name, row in BACKBONES.items()]


@pytest.mark.parametrize("row", ROWS)
def test_row_agrees_with_the_real_network(row: Backbone) -> None:
    import keras

    from finetune.backbones import feature_map_of

    shape = (row.size, row.size, 3)
    keras.backend.clear_session()  # Keras numbers some layers by how many there were before
    with keras.StatelessScope(initialize_variables=False):  # the graph alone: no memory for weights, 3x faster
        backbone = row.build(include_top=False, input_shape=shape)
        whole = row.build(input_shape=shape)
    assert whole.count_params() == row.parameters
    assert backbone.count_params() == row.backbone_parameters
    assert len(whole.layers) == row.layers
    assert any(isinstance(layer, keras.layers.BatchNormalization) for layer in whole.layers) == row.batch_norm
    assert whole.output.shape == (None, 1000)
    assert feature_map_of(whole, row).shape == backbone.output.shape
    _check_blocks(backbone, row)
    _check_block_table(backbone, row)
    keras.backend.clear_session()


def _check_blocks(backbone: Any, row: Backbone) -> None:
    """Every layer is in one block, and a cut between blocks divides the weights: none is lost, none on both sides."""
    import keras

    from finetune.backbones import blocks

    found = blocks.find_blocks(backbone)
    listed = {layer.name for block in found for layer in block.layers}
    # (MobileNetV3 and ConvNeXt also have bare operations such as `x + 3`, which are no layers)
    assert listed >= {layer.name for layer in backbone.layers if not isinstance(layer, keras.layers.InputLayer)}
    assert len(found) >= (2 if row.name.startswith("nasnet") else 5)  # NASNet's cells reach back over two cells
    for block in {found[len(found) // 2].name: found[len(found) // 2], found[-1].name: found[-1]}.values():
        below = keras.Model(backbone.inputs[0], block.input)
        above = keras.Model(block.input, backbone.output)
        sides = [{id(weight) for weight in side.weights} for side in (below, above)]
        assert not sides[0] & sides[1]
        assert sides[0] | sides[1] == {id(weight) for weight in backbone.weights}


def _check_block_table(backbone: Any, row: Backbone) -> None:
    from finetune.backbones import blocks

    measured = blocks.measure_blocks(backbone)
    lines = "\n".join(",".join(map(str, (row.name, *block))) for block in measured)
    assert blocks.blocks_of(row.name) == measured, f"blocks.csv should say\n{lines}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "mobilenet", "xception", "inception_v3", "densenet121", "alexnet", "tiny"])
def test_least_size_is_the_least(name: str) -> None:
    row = catalog.find_backbone(name)
    row.build(include_top=False, input_shape=(row.min_size, row.min_size, 3))
    if row.constructor.startswith("keras"):
        with pytest.raises(ValueError, match=f"at least {row.min_size}"):
            row.build(include_top=False, input_shape=(row.min_size - 1, row.min_size - 1, 3))


@pytest.mark.parametrize("row", [row for row in BACKBONES.values() if row.constructor.startswith("keras")],
                         ids=lambda row: row.name)  # fmt: skip
def test_scaling_equals_keras_preprocessing(row: Backbone) -> None:
    image = np.random.default_rng(0).uniform(0, 255, (2, 5, 5, 3)).astype("float32")
    wanted = _keras_module(row.constructor.partition(":")[2]).preprocess_input(image.copy())
    matrix, bias = catalog.SCALINGS[row.scaling]
    np.testing.assert_allclose(image @ np.array(matrix) + bias, wanted, atol=1e-5 if row.scaling != "caffe" else 1e-4)


def test_every_constructor_of_keras_is_listed() -> None:
    import keras

    public = {name for name in dir(keras.applications) if name[0].isupper()}
    listed = {row.constructor.partition(":")[2] for row in BACKBONES.values()}
    assert public <= listed


@pytest.mark.slow
def test_files_are_named_as_keras_asks_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras is asked for ImageNet weights, and what it would download is compared with the row."""
    import keras

    asked: list[tuple[Any, ...]] = []

    class Enough(Exception):
        pass

    def get_file(name: str, origin: str, *_: Any, **options: Any) -> None:
        asked.append((name, origin, options.get("file_hash") or options.get("md5_hash")))
        raise Enough

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    for name in ("mobilenet_050", "mobilenet_v2_140", "mobilenet_v3_small_minimalistic", "vgg16"):
        row = catalog.find_backbone(name)
        for top, file in ((True, row.top), (False, row.no_top)):
            assert file is not None
            shape = (row.size, row.size, 3)
            with pytest.raises(Enough), keras.StatelessScope(initialize_variables=False):
                _constructor(row)(include_top=top, weights="imagenet", input_shape=shape, **row.arguments)
            hash = file.hash.partition(":")[2] if file.hash else None
            assert asked.pop() == (file.name, file.url, hash)
    keras.backend.clear_session()


def test_facts_are_within_reason() -> None:
    for row in BACKBONES.values():
        assert 8 <= row.min_size <= row.size <= 600
        assert row.backbone_parameters < row.parameters
        assert 0.8 < row.crop <= 1
        assert row.scaling in catalog.SCALINGS
        if row.trained_on == "nothing":
            continue
        assert row.top is not None
        assert 45 < (row.top1 or 0) < 90
        assert row.top5 is None or row.top1 < row.top5 < 100
        assert row.paper.startswith("https://")
        for file in (row.top, row.no_top):
            assert file is None or (file.url is None) == (file.package is not None)
            assert file is None or file.hash is None or file.hash.startswith(("md5:", "sha256:"))


def test_images_are_prepared_as_they_were_when_the_accuracy_was_measured() -> None:
    """Sources: google/automl efficientnetv2/preprocessing.py and preprocess_legacy.py, facebookresearch/ConvNeXt
    datasets.py, torchvision.transforms._presets.ImageClassification; docs/decisions.md says more."""
    for row in BACKBONES.values():
        prepared = (row.interpolation, row.crop)
        if row.name in ("efficientnet_v2_s", "efficientnet_v2_m", "efficientnet_v2_l"):
            assert prepared == ("bilinear", 1.0)
        elif row.name.startswith("efficientnet"):
            assert prepared == ("bicubic", round(row.size / (row.size + 32), 3))
        elif row.name.startswith("convnext"):
            assert prepared == ("bicubic", 0.875)
        else:
            assert prepared == ("bilinear", 0.875)


def test_file_names_are_unique() -> None:
    names = [file.name for row in BACKBONES.values() for file in (row.top, row.no_top) if file]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("EfficientNetLite0", "efficientnet_lite0"),
        ("efficientnet-lite0", "efficientnet_lite0"),
        ("MobileNet-025", "mobilenet_025"),
        ("mobilenetv2", "mobilenet_v2"),
        ("MobileNetV2 1.0", "mobilenet_v2"),
        ("ResNet50V2", "resnet50_v2"),
        ("efficientnetv2b0", "efficientnet_v2_b0"),
        ("NASNetLarge", "nasnet_large"),
        ("VGG 16", "vgg16"),
    ],
)
def test_find_forgives_spelling(word: str, name: str) -> None:
    assert catalog.find_backbone(word).name == name


def test_find_proposes_names() -> None:
    with pytest.raises(ConfigError, match="'resnet50'"):
        catalog.find_backbone("resnet50x")
    with pytest.raises(ConfigError, match="no backbone ''"):
        catalog.find_backbone("")


def test_no_two_rows_answer_to_one_word() -> None:
    for row in BACKBONES.values():
        assert catalog.find_backbone(row.name) is row
        assert catalog.find_backbone(row.title) is row


@pytest.mark.slow
@pytest.mark.usefixtures("report_not_drawn")
def test_a_network_of_ones_own_is_registered_as_the_docstring_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    import finetune

    program = textwrap.dedent(inspect.getdoc(register_backbone).split("# mynet.py\n")[1].split("finetune.train(")[0])
    (tmp_path / "mynet.py").write_text("from finetune.utils import keras\n" + program)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(catalog, "_backbones", dict(BACKBONES))
    monkeypatch.setattr(catalog, "BACKBONES", catalog._backbones)
    importlib.import_module("mynet")
    row = catalog.find_backbone("MyNet")
    network = row.build()
    assert network.count_params() == row.parameters
    assert row.build(include_top=False).count_params() == row.backbone_parameters
    assert len(network.layers) == row.layers
    assert [block.name for block in blocks_of("mynet")] == ["conv1", "conv2", "conv3"]
    head = {"epochs": 1, "start": "random"}
    run = {"output": str(tmp_path / "runs"), "data": {"folder": str(images)}, "head": head, "fine_tune": {"epochs": 1}}
    result = finetune.train({**run, "model": {"backbone": "mynet", "weights": "none"}, "recipe": "none"})
    assert result.metrics.n > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "ResNet-50"}, "there is a backbone resnet50 already"),
        ({"title": "VGG 16"}, "there is a backbone vgg16 already"),
        ({"scaling": "zoom"}, "no scaling 'zoom'"),
        ({"constructor": "tiny"}, "not of the form module:function"),
    ],
)
def test_a_row_that_cannot_be_is_not_registered(changes: dict[str, Any], message: str) -> None:
    row = replace(catalog.find_backbone("tiny"), name="mine", title="Mine")
    with pytest.raises(UsageError, match=message):
        register_backbone(replace(row, **changes))
    assert "mine" not in BACKBONES


def test_imagenet_classes() -> None:
    classes = catalog.imagenet_classes()
    assert len(classes) == len({entry.id for entry in classes}) == len({entry.name for entry in classes}) == 1000
    assert classes[0] == ("n01440764", "tench")
    assert classes[385] == ("n02504013", "Indian elephant")
    assert not any("_" in entry.name for entry in classes)


def test_imagenet_classes_are_the_usual_ones(shared: Any) -> None:
    with (shared / "data" / "imagenet_classes.csv").open() as file:
        ids = [row["wordnet_id"] for row in csv.DictReader(file)]
    assert [entry.id for entry in catalog.imagenet_classes()] == ids


def test_catalogue_needs_no_heavy_imports() -> None:
    heavy = "{'numpy', 'keras', 'tensorflow', 'h5py', 'rich'}"
    code = f"import sys, finetune.backbones as b; b.BACKBONES; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
