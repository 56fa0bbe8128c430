"""Maps show where: they follow the class, the weights and the image. Sanity checks: Adebayo et al. 2018."""

import numpy as np
import pytest
from PIL import Image

from finetune import config, data
from finetune.cli import main as cli
from finetune.evaluation import explain as explanation
from finetune.models import build_classifier, load_classifier
from finetune.utils import UsageError, keras

# A row of each family. All but a few of the largest of the catalogue were seen to give a map (2026-11-22).
FAMILIES = {
    "mobilenet_025": 96, "mobilenet_v2_035": 96, "mobilenet_v3_small_075": 96, "efficientnet_lite0": 96, "alexnet": 96,
    "efficientnet_b0": 96, "efficientnet_v2_b0": 96, "resnet50_v2": 96, "densenet121": 96, "vgg16": 96,
    "convnext_tiny": 96, "xception": 96, "nasnet_mobile": 96, "inception_v3": 160,
}  # fmt: skip


def untrained(backbone, size=96, pooling="avg"):
    settings = config.ModelConfig(backbone=backbone, weights="none", image_size=size, pooling=pooling)
    return build_classifier(settings, ["cat", "dog", "hot dog"])


@pytest.fixture(scope="module")
def tiny():
    return untrained("tiny", 64)


@pytest.fixture(scope="module")
def imagenet():
    return load_classifier("efficientnet_lite0")


@pytest.fixture
def image():
    return np.random.default_rng(3).integers(0, 255, (64, 64, 3)).astype(np.uint8)


def feature_map(subject, image):
    below = keras.Model(subject.model.inputs[0], subject.feature_map)
    return below(image[None].astype("float32"), training=False).numpy()[0]


def read(path, size):
    return np.asarray(Image.fromarray(data.read_image(path)).resize(size))


# ------------------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize("method", explanation.EXPLAIN_METHODS)
def test_a_map_has_the_size_of_the_image_and_values_from_0_to_1(tiny, image, method):
    result = explanation.explain_image(tiny, image, target="dog", method=method)
    assert result.heat.shape == (64, 64)
    assert result.heat.dtype == np.float32
    assert result.heat.min() >= 0
    assert result.heat.max() <= 1
    assert result.cells.shape == (8, 8)
    assert result.target.name == "dog"
    assert sum(one.probability for one in result.predictions) == pytest.approx(1, abs=1e-5)
    assert explanation.overlay_heatmap(result.image, result.heat).shape == (64, 64, 3)


def test_without_a_target_the_likeliest_class_is_explained(tiny, image):
    result = explanation.explain_image(tiny, image)
    assert result.target == result.predictions[0]
    asked = explanation.explain_image(tiny, image, target=result.target.name)
    np.testing.assert_array_equal(result.heat, asked.heat)


def test_with_a_linear_head_grad_cam_is_the_plain_cam_without_what_speaks_against(tiny, image):
    """Selvaraju et al. 2017, section 3.1: Grad-CAM generalises CAM."""
    features = feature_map(tiny, image)
    kernel = tiny.model.get_layer("logits").kernel.numpy()
    by_hand = features @ kernel[:, 1] / 64  # the mean over 8 x 8 cells
    cam = explanation.explain_image(tiny, image, target="dog", method="cam")
    grad = explanation.explain_image(tiny, image, target="dog", method="grad-cam")
    np.testing.assert_allclose(cam.cells, by_hand, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(grad.cells, cam.cells)
    assert explanation.heatmap(cam.cells, 8, method="cam").min() == 0
    np.testing.assert_array_equal(explanation.heatmap(grad.cells, 8) == 0, grad.cells <= 0)


def test_grad_cam_plus_plus_follows_its_formula(tiny, image):
    result = explanation.explain_image(tiny, image, target=1, method="grad-cam++")
    features = feature_map(tiny, image).astype("float64")
    gradient = tiny.model.get_layer("logits").kernel.numpy()[:, 1].astype("float64") / 64
    alpha = gradient**2 / (2 * gradient**2 + gradient**3 * features.sum(axis=(0, 1)))
    expected = features @ (64 * alpha * np.maximum(gradient, 0))
    np.testing.assert_allclose(result.cells, expected, rtol=1e-3, atol=1e-6)


def test_nothing_that_speaks_for_the_class_gives_a_blank_map():
    assert not explanation.heatmap(np.full((7, 7), -1, np.float32), 56).any()
    assert not explanation.heatmap(np.zeros((7, 7), np.float32), 56).any()
    assert not explanation.heatmap(np.full((7, 7), np.nan, np.float32), 56).any()


def test_a_file_is_seen_as_the_network_sees_it(tiny, image, tmp_path):
    path = tmp_path / "wide.png"
    Image.fromarray(np.concatenate([image, image], axis=1)).save(path)
    result = explanation.explain_image(tiny, path)
    np.testing.assert_array_equal(result.image, data.read_square(path, tiny.transform))


def test_heat_leaves_the_image_as_it_is_where_nothing_was_decided_and_visible_elsewhere(image):
    heat = np.zeros((64, 64), np.float32)
    heat[:32] = 0.1
    heat[:, :16] = 1
    overlay = explanation.overlay_heatmap(image, heat)
    np.testing.assert_array_equal(overlay[:, 16:], image[:, 16:])
    assert (overlay[:, :16] != image[:, :16]).any(axis=2).mean() > 0.9
    assert np.corrcoef(overlay[:, :16].ravel(), image[:, :16].ravel())[0, 1] > 0.5


@pytest.mark.parametrize(
    ("resize", "seen"), [("crop", (120, 10, 200, 90)), ("squash", (0, 0, 320, 100)), ("pad", (0, 0, 320, 100))]
)
def test_a_photo_is_explained_at_its_own_resolution(resize, seen):
    """A map that is hot in its left half lies on the left half of what the network saw of the photo."""
    transform = data.Transform(64, resize=resize, crop=0.8)
    pixels = np.full((100, 320, 3), 200, np.uint8)
    heat = np.zeros((64, 64), np.float32)
    heat[:, :32] = 1
    made = explanation.Explanation(pixels, heat, heat, None, (), "cam")
    overlay = explanation.overlay_photo(pixels, made, transform)
    left, top, right, bottom = seen
    middle = (left + right) // 2
    assert (overlay[top:bottom, left : middle - 5] != 200).any(axis=2).all()
    np.testing.assert_array_equal(overlay[top:bottom, middle + 5 : right], 200)
    outside = np.ones((100, 320), bool)
    outside[top:bottom, left:right] = False
    assert (overlay[outside] == 90).all()  # not seen: darker, and without heat


def test_many_images_at_once_give_the_maps_of_each(tiny, image):
    both = np.stack([image, image[::-1]])
    cells, probabilities = explanation.make_explainer(tiny).maps(both, [0, 2])
    for at, target in enumerate([0, 2]):
        single = explanation.explain_image(tiny, both[at], target=target)
        np.testing.assert_allclose(cells[at], single.cells, rtol=1e-4, atol=1e-6)
    assert probabilities.shape == (2, 3)


def test_the_map_follows_the_weights(image):
    """A randomised model gives another map (Adebayo et al. 2018), also from the same explainer."""
    subject = untrained("tiny", 64)
    before = explanation.explain_image(subject, image, target="cat").cells
    random = np.random.default_rng(1)
    for layer in subject.model.layers:
        if layer.name.endswith("_conv"):
            layer.set_weights([random.normal(0, 0.3, weight.shape) for weight in layer.get_weights()])
    after = explanation.explain_image(subject, image, target="cat").cells
    assert abs(np.corrcoef(before.ravel(), after.ravel())[0, 1]) < 0.9


# --------------------------------------------------------------------------------------------------- families


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "size"), FAMILIES.items())
def test_every_family_gives_a_map(backbone, size):
    subject = untrained(backbone, size)
    head = keras.Model(subject.feature_map, subject.model.output)
    image = np.random.default_rng(0).integers(0, 255, (1, size, size, 3)).astype("float32")
    cells = explanation.grad_cam(head, subject.backbone(image, training=False))[0].numpy()
    assert cells.ndim == 3
    assert cells.shape[1] >= 2
    assert np.isfinite(cells).all()
    assert np.ptp(cells) > 0


def test_a_feature_map_of_one_cell_is_refused():
    with pytest.raises(UsageError, match="no feature map to explain: at 8 px its features are 1 x 1 x 32"):
        explanation.explain_image(untrained("tiny", 8), np.zeros((8, 8, 3), np.uint8))


def test_plain_cam_is_refused_where_the_head_does_not_allow_it():
    with pytest.raises(UsageError, match="plain CAM needs a head of one global mean"):
        explanation.explain_image(untrained("tiny", 64, pooling="max"), np.zeros((64, 64, 3), np.uint8), method="cam")


def test_an_unknown_method_names_the_nearest(tiny, image):
    with pytest.raises(UsageError, match=r"no method 'gradcam'. Did you mean 'grad-cam'"):
        explanation.explain_image(tiny, image, method="gradcam")


# ------------------------------------------------------------------------------------------- the real network


@pytest.mark.slow
def test_on_the_elephant_image_the_mass_lies_on_the_elephant(imagenet, shared):
    result = explanation.explain_image(imagenet, shared / "data/demo_images/elephant.jpg")
    body = np.zeros((224, 224), bool)
    body[10:215, 30:224] = True  # the box around it, 76 % of the image
    core = np.zeros((224, 224), bool)
    core[30:180, 40:200] = True  # head and chest, 48 %
    assert result.target.name == "African elephant"
    assert result.heat[body].sum() / result.heat.sum() > 0.9
    assert result.heat[core].sum() / result.heat.sum() > 0.75


@pytest.mark.slow
# Grad-CAM++ leaves out the channels that speak against a class, and tells classes apart less sharply by it.
@pytest.mark.parametrize(("method", "sharpness"), [("grad-cam", 0.7), ("grad-cam++", 0.25), ("cam", 0.5)])
def test_the_map_of_two_animals_moves_with_the_class_asked_for(imagenet, shared, method, sharpness):
    folder = shared / "data/demo_images"
    elephant, cat = (
        read(folder / "elephant.jpg", (300, 224)),
        read(folder / "mobilenet_caffe_cat.jpg", (300, 224)),
    )
    both = np.concatenate([elephant[:, 60:172], cat[:, 100:212]], axis=1)

    def left(target):
        heat = explanation.explain_image(imagenet, both, target=target, method=method).heat
        return heat[:, :112].sum() / heat.sum()

    assert left("African elephant") > 0.5 > left("tiger cat")
    assert left("African elephant") - left("tiger cat") > sharpness


# ----------------------------------------------------------------------------------------------- command line


@pytest.mark.slow
def test_the_command_writes_an_image_beside_its_answers(shared, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = str(shared / "data/demo_images/granny_smith.jpg")
    assert cli.main(["explain", path, "--class", "granny smith"]) == 0
    written = tmp_path / "explanations/granny_smith-Granny_Smith.png"
    with Image.open(written) as drawn:
        assert drawn.width > drawn.height
    assert "Granny Smith 9" in capsys.readouterr().out
    assert cli.main(["explain", path, "--class", "granny smith"]) == 2  # it exists
    assert cli.main(["explain", path, "--class", "grany smith"]) == 2
    assert "Did you mean 'Granny Smith'" in capsys.readouterr().err


@pytest.mark.slow
def test_images_of_one_name_do_not_overwrite_each_other(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one/a.jpg", "two/a.jpg", "broken.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((shared / "data/demo_images/elephant.jpg").read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    assert cli.main(["explain", "one/a.jpg", "two/a.jpg", "broken.jpg", "--output", "out"]) == 6
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a-2.png", "a.png"]
