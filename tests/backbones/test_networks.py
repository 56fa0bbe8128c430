"""Networks of ours, and weight files put into networks."""

import importlib
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from tiny_network import Tiny

from finetune.backbones import Weights, feature_map_of, registry as catalog, weights
from finetune.backbones.networks import alexnet, efficientnet_lite, loading as networks
from finetune.utils import WeightsError

# Keras 3.15 converts variables in a way that NumPy 2.4 does not like
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LITES = {
    "efficientnet_lite0": efficientnet_lite.EfficientNetLite0,
    "efficientnet_lite1": efficientnet_lite.EfficientNetLite1,
    "efficientnet_lite2": efficientnet_lite.EfficientNetLite2,
}


def _h5(path: Path, *, has_top: bool) -> Weights:
    return Weights(path, "", "h5", has_top)


def _save_as_published(model: keras.Model, path: Path) -> None:
    """In the format in which keras.applications publishes weights, written by Keras itself."""
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)


def _stir(model: keras.Model) -> keras.Model:
    """Other than initial values everywhere, so that a weight left out shows."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(random.uniform(0.5, 1.5, weight.shape))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    return model


def _images(size: int, count: int = 2) -> Any:
    return np.random.default_rng(1).uniform(0, 255, (count, size, size, 3)).astype("float32")


# -------------------------------------------------------------------------------------------------- signature


@pytest.mark.slow
@pytest.mark.parametrize("build", [efficientnet_lite.EfficientNetLite0, alexnet.AlexNet, Tiny])
def test_signature_is_that_of_keras_applications(build: Any) -> None:
    assert build(include_top=False, input_shape=(64, 64, 3)).output.shape[:1] == (None,)
    assert len(build(include_top=False, input_shape=(64, 96, 3), pooling="avg").output.shape) == 2
    assert len(build(include_top=False, input_shape=(None, None, 3), pooling="max").output.shape) == 2
    assert build(classes=7, classifier_activation=None).output.shape == (None, 7)


def test_network_continues_the_callers_tensor() -> None:
    image = keras.Input((32, 32, 3))
    model = Tiny(input_tensor=keras.layers.Rescaling(1 / 255)(image), include_top=False)
    assert model.inputs[0] is image
    assert model.output.shape == (None, 4, 4, 32)


@pytest.mark.slow
def test_tiny_learns() -> None:
    model = Tiny(classes=2)
    images = np.concatenate([np.full((16, 32, 32, 3), -1.0), np.full((16, 32, 32, 3), 1.0)])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(images, np.repeat([0, 1], 16), epochs=15, verbose=0).history
    assert history["accuracy"][-1] > 0.9


# ------------------------------------------------------------------------------------------ EfficientNet-Lite


@pytest.mark.slow
@pytest.mark.parametrize("name", LITES)
def test_lite_takes_every_tensor_of_its_file(name: str) -> None:
    row = catalog.find_backbone(name)
    try:
        found = weights.resolve_weights(row, "imagenet", top=True)
    except WeightsError as error:
        pytest.skip(str(error))
    assert found is not None
    model = LITES[name](input_shape=(64, 64, 3))
    networks.load_weights(model, found, row)
    tensors = {key: value for key, value in weights.read_torch_file(found.path).items() if "num_batches" not in key}
    assert sum(value.size for value in tensors.values()) == model.count_params()
    assert np.array_equal(model.get_layer("predictions").kernel, tensors["_fc.weight"].T)
    assert np.array_equal(model.get_layer("top_bn").moving_variance, tensors["_bn1.running_var"])


@pytest.mark.slow
def test_lite0_knows_imagenet(shared: Path) -> None:
    """40 of the 1000 photos; on all of them top-1 was 86.9 %, top-5 97.3 %."""
    from PIL import Image

    row = catalog.find_backbone("efficientnet_lite0")
    model = efficientnet_lite.EfficientNetLite0()
    found = weights.resolve_weights(row, "imagenet", top=True)
    assert found is not None
    networks.load_weights(model, found, row)
    ids = [entry.id for entry in catalog.imagenet_classes()]
    paths = sorted((shared / "data" / "imagenet_samples").glob("*.JPEG"))[::25]
    pixels = []
    for path in paths:
        with Image.open(path) as image:
            width, height = image.size
            side = min(width, height) * row.crop
            left, top = round((width - side) / 2), round((height - side) / 2)
            box = (left, top, left + side, top + side)
            pixels.append(np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC, box=box)))
    matrix, bias = catalog.SCALINGS[row.scaling]
    scores = model.predict(np.stack(pixels) @ np.array(matrix) + bias, verbose=0)
    right = [ids[best] == path.name.partition("_")[0] for best, path in zip(scores.argmax(1), paths, strict=True)]
    assert np.mean(right) >= 0.8


@pytest.mark.slow
def test_lite_without_top_gives_the_features_of_lite_with_top() -> None:
    row = catalog.find_backbone("efficientnet_lite0")
    found = weights.resolve_weights(row, "imagenet", top=False)
    assert found is not None
    assert found.has_top
    whole = efficientnet_lite.EfficientNetLite0(input_shape=(64, 64, 3))
    backbone = efficientnet_lite.EfficientNetLite0(include_top=False, input_shape=(64, 64, 3))
    networks.load_weights(whole, found, row)
    networks.load_weights(backbone, found, row)
    features = keras.Model(whole.input, feature_map_of(whole, row))
    image = _images(64) / 128 - 1
    np.testing.assert_array_equal(backbone(image), features(image))


@pytest.mark.slow
def test_mismatch_is_reported_layer_by_layer_and_changes_nothing() -> None:
    row = catalog.find_backbone("efficientnet_lite0")
    found = weights.resolve_weights(row, "imagenet", top=True)
    assert found is not None
    model = efficientnet_lite.EfficientNetLite0(classes=5)
    before = model.get_layer("stem_conv").get_weights()[0]
    with pytest.raises(WeightsError) as caught:
        networks.load_weights(model, found, row)
    assert "predictions: expected 1280x5, 5, the file has 1280x1000, 1000" in str(caught.value)
    assert "stem_conv" not in str(caught.value)
    assert np.array_equal(model.get_layer("stem_conv").get_weights()[0], before)

    other = efficientnet_lite.EfficientNetLite2(include_top=False)
    with pytest.raises(WeightsError, match=r"block3c_depthwise_bn: expected .*the file has") as caught:
        networks.load_weights(other, found, row)
    assert "layers more" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["nan", "zero", "missing", "unknown"])
def test_bad_tensors_are_named(spoil: str) -> None:
    found = weights.resolve_weights(catalog.find_backbone("efficientnet_lite0"), "imagenet", top=True)
    assert found is not None
    tensors = weights.read_torch_file(found.path)
    if spoil == "nan":
        tensors["_conv_head.weight"][3, 3] = np.nan
    elif spoil == "zero":
        tensors["_conv_head.weight"][:] = 0
    elif spoil == "missing":
        del tensors["_conv_head.weight"]
    else:
        tensors["_blocks.99._bn0.weight"] = np.ones(3)
    with pytest.raises(WeightsError, match=r"_blocks\.99\._bn0" if spoil == "unknown" else "top_conv"):
        efficientnet_lite.assign(efficientnet_lite.EfficientNetLite0(), tensors)


# ---------------------------------------------------------------------------------------------------- AlexNet


def _torch_alexnet(torch: Any) -> Any:
    """The layers of torchvision's AlexNet, in its order and with its names."""
    nn = torch.nn

    class Net(nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
                nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
                nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
                nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
                nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
            )  # fmt: skip
            self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
            self.classifier = nn.Sequential(
                nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU(),
                nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000),
            )  # fmt: skip

        def forward(self, x: Any) -> Any:
            return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))

    return Net().eval()


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
def test_alexnet_equals_torch(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch", reason="compares with torch, which is not installed")
    net = _torch_alexnet(torch)
    path = tmp_path / "alexnet.pth"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=zipped)
    found = weights.resolve_weights(catalog.find_backbone("alexnet"), path, top=True)
    assert found is not None
    assert found.format == "torch"
    model = alexnet.AlexNet(classifier_activation=None)
    networks.load_weights(model, found, catalog.find_backbone("alexnet"))
    image = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype("float32")
    with torch.no_grad():
        wanted = net(torch.from_numpy(image.transpose(0, 3, 1, 2))).numpy()
    np.testing.assert_allclose(model(image), wanted, atol=1e-5)


@pytest.mark.slow
def test_alexnet_without_top_takes_a_file_with_top() -> None:
    whole = alexnet.AlexNet()
    tensors = {}
    for name, torch in alexnet.TORCH_NAMES.items():
        kernel, bias = whole.get_layer(name).get_weights()
        if name == "fc6":
            kernel = kernel.reshape(6, 6, 256, -1).transpose(2, 0, 1, 3).reshape(9216, -1)
        tensors[f"{torch}.weight"] = kernel.T if kernel.ndim == 2 else kernel.transpose(3, 2, 0, 1)
        tensors[f"{torch}.bias"] = bias
    backbone = alexnet.AlexNet(include_top=False)
    alexnet.assign(backbone, tensors)
    again = alexnet.AlexNet()
    alexnet.assign(again, tensors)
    image = _images(224, 1) / 255
    np.testing.assert_array_equal(again(image), whole(image))
    np.testing.assert_array_equal(backbone(image), keras.Model(whole.input, whole.get_layer("pool5").output)(image))


# ------------------------------------------------------------------------------------------------ keras files


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_v2_b0", "mobilenet_v3_small", "convnext_tiny"])
def test_published_file_gives_what_keras_gives(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras itself loads the file as weights="imagenet"; our network, with and without head, must agree."""
    row = catalog.find_backbone(name)
    module, _, function = row.constructor.partition(":")
    build = getattr(importlib.import_module(module), function)
    shape = (row.size, row.size, 3)
    author = _stir(build(weights=None, input_shape=shape, **row.arguments))
    for layer in author.layers:  # as they were published: see networks.DEVIATION
        if isinstance(layer, keras.layers.Normalization) and name == "efficientnet_b0":
            layer.set_weights([np.array([0.485, 0.456, 0.406]), np.array(networks.DEVIATION), np.array(0)])
    path = tmp_path / "published.h5"
    _save_as_published(author, path)
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: path)
    reference = build(weights="imagenet", input_shape=shape, **row.arguments)

    whole = build(weights=None, input_shape=shape, **row.arguments)
    backbone = build(weights=None, include_top=False, input_shape=shape, **row.arguments)
    networks.load_weights(whole, _h5(path, has_top=True), row)
    networks.load_weights(backbone, _h5(path, has_top=True), row)
    image = _images(row.size, 1)
    np.testing.assert_allclose(whole(image), reference(image), rtol=1e-3, atol=1e-6)
    if name != "convnext_tiny":  # Keras normalises its features once more without head
        wanted = keras.Model(reference.input, feature_map_of(reference, row))(image)
        scale = np.abs(wanted).max()  # rounding depends on the processor, and follows the largest values
        np.testing.assert_allclose(backbone(image), wanted, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("top", [True, False])
def test_shared_mobilenet_loads_as_in_keras(shared: Path, top: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERAS_HOME", str(shared / "weights" / "keras_home"))
    row = catalog.find_backbone("mobilenet_025")
    found = weights.resolve_weights(row, "imagenet", top=top)
    assert found is not None
    assert found.has_top is top
    shape = (224, 224, 3)
    ours = keras.applications.MobileNet(weights=None, alpha=0.25, include_top=top, input_shape=shape)
    theirs = keras.applications.MobileNet(weights=None, alpha=0.25, include_top=top, input_shape=shape)
    networks.load_weights(ours, found, row)
    theirs.load_weights(found.path)
    for mine, other in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.slow
def test_frozen_and_viewed_model_is_loaded_too(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the classifier does it: a network behind preprocessing, seen as a model of its own, and frozen."""
    monkeypatch.setenv("KERAS_HOME", str(shared / "weights" / "keras_home"))
    row = catalog.find_backbone("mobilenet_025")
    found = weights.resolve_weights(row, "imagenet", top=True)
    assert found is not None
    image = keras.Input((64, 64, 3))
    scaled = keras.layers.Conv2D(3, 1, name="preprocessing")(image)
    output = keras.applications.MobileNet(
        weights=None, alpha=0.25, include_top=False, input_tensor=scaled, input_shape=(64, 64, 3)
    ).output
    view = keras.Model(scaled, output)
    view.trainable = False
    networks.load_weights(view, found, row)
    plain = keras.applications.MobileNet(weights=None, alpha=0.25, include_top=False, input_shape=(64, 64, 3))
    networks.load_weights(plain, found, row)
    pixels = _images(64) / 127.5 - 1
    np.testing.assert_array_equal(view(pixels), plain(pixels))


def test_wrong_keras_file_is_reported(shared: Path) -> None:
    path = shared / "weights" / "keras_home" / "models" / "mobilenet_2_5_224_tf.h5"
    row = catalog.find_backbone("mobilenet_050")
    model = keras.applications.MobileNet(weights=None, alpha=0.5, include_top=False, input_shape=(64, 64, 3))
    with pytest.raises(WeightsError, match="conv1: expected 3x3x3x16, the file has 3x3x3x8"):
        networks.load_weights(model, _h5(path, has_top=True), row)


def test_users_keras3_file(tmp_path: Path) -> None:
    row = catalog.find_backbone("tiny")
    author = _stir(Tiny())
    path = tmp_path / "mine.weights.h5"
    author.save_weights(path)
    found = weights.resolve_weights(row, path, top=True)
    assert found is not None
    assert (found.format, found.has_top) == ("keras_h5", True)
    whole, backbone = Tiny(), Tiny(include_top=False)
    networks.load_weights(whole, found, row)
    networks.load_weights(backbone, found, row)
    image = _images(32) / 255
    np.testing.assert_array_equal(whole(image), author(image))
    np.testing.assert_array_equal(
        backbone(image), keras.Model(author.input, author.get_layer("block3_add").output)(image)
    )
    with pytest.raises(WeightsError, match="predictions: expected 32x3, 3, the file has 32x1000, 1000"):
        networks.load_weights(Tiny(classes=3), found, row)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext_tiny", "mobilenet_v2_035"])
def test_keras3_file_gives_what_keras_gives(name: str, tmp_path: Path) -> None:
    row = catalog.find_backbone(name)
    build = getattr(keras.applications, row.constructor.partition(":")[2])
    author = _stir(build(weights=None, include_top=False, input_shape=(64, 64, 3), **row.arguments))
    path = tmp_path / "mine.weights.h5"
    author.save_weights(path)
    model = build(weights=None, include_top=False, input_shape=(64, 64, 3), **row.arguments)
    networks.load_weights(model, Weights(path, "", "keras_h5", False), row)
    np.testing.assert_array_equal(model(_images(64)), author(_images(64)))


def test_users_older_whole_model_with_other_classes(tmp_path: Path) -> None:
    row = catalog.find_backbone("tiny")
    author = _stir(Tiny(classes=4))
    path = tmp_path / "old.h5"
    with h5py.File(path, "w") as file:
        from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

        save_weights_to_hdf5_group(file.create_group("model_weights"), author)
    found = weights.resolve_weights(row, path, top=False)
    assert found is not None
    assert (found.format, found.has_top) == ("h5", False)
    backbone = Tiny(include_top=False)
    networks.load_weights(backbone, found, row)
    np.testing.assert_array_equal(backbone.get_layer("block2_conv").kernel, author.get_layer("block2_conv").kernel)
    with pytest.raises(WeightsError, match="1000 classes"):
        weights.resolve_weights(row, path, top=True)


def _attention() -> keras.Model:
    """Its projections have biases with two axes (heads, features), which begin as zeros."""
    x = keras.Input((4, 6))
    return keras.Model(x, keras.layers.MultiHeadAttention(2, 3, name="attention")(x, x))


def test_honest_zeros_of_a_bias_are_weights_and_those_of_a_kernel_are_not() -> None:
    model, filled = _attention(), _attention()
    arrays = filled.get_layer("attention").get_weights()
    networks.set_weights(model, {"attention": arrays}, what="a file")
    for weight, expected in zip(model.get_layer("attention").get_weights(), arrays, strict=True):
        np.testing.assert_array_equal(weight, expected)
    with pytest.raises(WeightsError, match="nothing but zeros in its kernel"):
        networks.set_weights(model, {"attention": [np.zeros_like(arrays[0]), *arrays[1:]]}, what="a file")
