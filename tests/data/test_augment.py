"""What each augmentation does, measured; and that augmentation and mixing are decided by their key alone."""

import colorsys

import numpy as np
import pytest

from finetune.config import AugmentConfig
from finetune.data import Augmenter, MixUpCutMix
from finetune.data.augment import BLANK, RandAugment
from finetune.utils import tf

COUNT = 400  # draws of each change


@pytest.fixture(scope="module")
def augmenter():
    return Augmenter(AugmentConfig(flip="horizontal", rotate=20, zoom=0.2, shift=0.1, brightness=0.2, contrast=0.2))


def test_augmentation_is_decided_by_its_key_alone(augmenter):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    first = augmenter(images, (0, 1, 2)).numpy()
    other = augmenter(images, (0, 1, 3)).numpy()
    again = augmenter(images, (0, 1, 2)).numpy()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1
    assert first.min() >= 0
    assert first.max() <= 255


def test_each_image_is_changed_differently(augmenter):
    same = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3)), 4, axis=0).astype(np.uint8)
    changed = augmenter(same, (3,)).numpy()
    assert np.abs(changed[0] - changed[1]).mean() > 1


def test_no_augmentation_changes_nothing():
    plain = Augmenter(AugmentConfig())
    assert not plain
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    np.testing.assert_array_equal(plain(images, (0,)).numpy(), images)


@pytest.mark.parametrize("preset", ["light", "standard", "strong"])
def test_presets_keep_the_range(preset):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    changed = Augmenter(AugmentConfig(preset=preset))(images, (1,)).numpy()
    assert changed.shape == images.shape
    assert 0 <= changed.min() <= changed.max() <= 255
    assert not np.array_equal(changed, images)


# ---------------------------------------------------------------------------- what each does, against its documentation


def draws(image, **keys):
    """`image` (S, S, 3) as `COUNT` draws of an augmentation show it."""
    batch = np.repeat(np.asarray(image, np.float32)[None], COUNT, axis=0)
    return Augmenter(AugmentConfig(**keys))(batch, (0,)).numpy()


def plain(colour, size=8):
    return np.full((size, size, 3), colour, np.float32)


def blobs(*places, size=65):
    """Bright spots at `places` (y, x) from the centre of a black image."""
    y, x = np.mgrid[:size, :size] - size // 2
    light = sum(np.exp(-((y - dy) ** 2 + (x - dx) ** 2) / 8) for dy, dx in places)
    return np.repeat(255 * np.minimum(light, 1)[..., None], 3, axis=-1).astype(np.float32)


def centres(images):
    """The centre of light (n, 2) in each image, as (y, x) from its middle."""
    light, half = images[..., 0].astype(float), images.shape[1] // 2
    y, x = np.mgrid[: images.shape[1], : images.shape[2]] - half
    weight = light.sum(axis=(1, 2))
    return np.stack([(light * y).sum(axis=(1, 2)) / weight, (light * x).sum(axis=(1, 2)) / weight], axis=1)


def widths(images):
    """The spread of the light along x around the middle of each image."""
    x = np.arange(images.shape[2]) - images.shape[2] // 2
    light = images[..., 0].astype(float).sum(axis=1)
    return np.sqrt((light * x**2).sum(axis=1) / light.sum(axis=1))


def hsv(images):
    """Hue, saturation and value (n, 3) of the first pixel of each image."""
    return np.array([colorsys.rgb_to_hsv(*(image[0, 0] / 255)) for image in images])


def turned_by(images):
    """By how many degrees the blob that was on the right has turned."""
    y, x = centres(images).T
    return np.degrees(np.arctan2(y, x))


def contrasts(images):
    return np.ptp(images[..., 0], axis=(1, 2))


def fill(values, low, high, upper_half=0.5):
    """Whether drawn `values` lie in low .. high, reach both ends, and are as often as expected in the upper half."""
    end, slack = 0.05 * (high - low), 0.01 * (high - low)
    reaches = low - slack < values.min() < low + end and high - end < values.max() < high + slack
    return reaches and (values > (low + high) / 2).mean() == pytest.approx(upper_half, abs=0.1)


TWO_TONES = np.stack([np.full((8, 8), 100), np.full((8, 8), 100), np.full((8, 8), 100)], axis=-1).astype(np.float32)
TWO_TONES[:4] = 150


def test_colours_change_by_up_to_the_fraction_both_ways():
    assert fill(draws(plain(128), brightness=0.2)[:, 0, 0, 0] / 255 - 128 / 255, -0.2, 0.2)
    assert fill(contrasts(draws(TWO_TONES, contrast=0.3)) / 50, 0.7, 1.3)
    strong_red = draws(plain((200, 100, 100)), saturation=0.2)
    assert fill(hsv(strong_red)[:, 1] / 0.5, 0.8, 1.2)
    np.testing.assert_allclose(hsv(strong_red)[:, [0, 2]], [[0, 200 / 255]] * COUNT, atol=1e-5)
    hues = hsv(draws(plain((100, 200, 200)), hue=0.1))[:, 0]
    assert fill(hues - 0.5, -0.1, 0.1)


def test_full_saturation_and_hue_stay_colours():
    assert np.allclose(draws(plain((250, 0, 0)), saturation=0.5)[..., 0], 250)  # more than saturated there is not
    weakest = draws(plain((200, 100, 100)), saturation=1)
    assert (hsv(weakest)[:, 1] < 0.05).mean() < 0.2  # few are grey
    assert len(np.unique(hsv(draws(plain((100, 200, 200)), hue=1))[:, 0].round(1))) >= 10  # the whole circle


def test_geometry_changes_by_up_to_the_amount_both_ways():
    assert fill(turned_by(draws(blobs((0, 16)), rotate=30)), -30, 30)
    assert all(fill(moved / 65, -0.2, 0.2) for moved in centres(draws(blobs((0, 0)), shift=0.2)).T)
    pair = blobs((0, -10), (0, 10))
    assert fill(widths(pair[None]) / widths(draws(pair, zoom=0.3)), 0.7, 1.3)


def test_flips_are_drawn_apart_for_each_side():
    corner = blobs((-16, -16))
    horizontal = np.sign(centres(draws(corner, flip="horizontal")))
    assert (horizontal[:, 0] == -1).all()
    assert (horizontal[:, 1] == 1).mean() == pytest.approx(0.5, abs=0.1)
    _, counts = np.unique(np.sign(centres(draws(corner, flip="both"))), axis=0, return_counts=True)
    assert counts / COUNT == pytest.approx([0.25] * 4, abs=0.08)


@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_erase_blanks_a_rectangle_with_its_probability(probability):
    image = np.random.default_rng(0).integers(0, 100, (32, 32, 3)).astype(np.float32)
    erased = draws(image, erase=probability)
    changed = (erased != image).any(axis=-1)
    assert changed.any(axis=(1, 2)).mean() == pytest.approx(probability, abs=0.07)
    assert (erased[changed] == BLANK).all()
    areas = changed.mean(axis=(1, 2))[changed.any(axis=(1, 2))]
    assert 0.01 < areas.min() < areas.max() < 0.36


def test_rand_augment_draws_two_changes_for_each_image():
    augment = RandAugment(0.5)
    augment.changes = [lambda images, training, number=number: 0 * images + number for number in (1, 2, 3)]
    shown = augment(tf.zeros((1600, 2, 2, 3)), training=True).numpy()[:, 0, 0, 0]
    counts = [(shown == number).mean() for number in range(4)]
    assert counts == pytest.approx([1 / 16, 5 / 16, 5 / 16, 5 / 16], abs=0.04)  # 0: twice the fourth, no change


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_rand_augment_reaches_as_far_as_in_the_paper_both_ways(strength):
    def shown(name, image, which=0):
        change = [change for change in changes if type(change).__name__ == name][which]
        return np.asarray(change(tf.repeat(image[None], COUNT, axis=0), training=True))

    changes, far = RandAugment(strength).changes, 0.9 * strength
    assert len(changes) == 13  # and none
    assert fill(turned_by(shown("RandomRotation", blobs((0, 16)))), -30 * strength, 30 * strength)
    for which, axis in enumerate((1, 0)):
        assert fill(
            centres(shown("RandomTranslation", blobs((0, 0)), which))[:, axis] / 65, -0.3 * strength, 0.3 * strength
        )
        at = blobs((10, -10))  # a shear moves by its share of the distance from the upper left corner
        moved = (centres(shown("RandomShear", at, which)) - centres(at[None]))[:, 1 - which] / (42, 22)[which]
        assert moved.min() < -0.25 * strength
        assert moved.max() > 0.25 * strength
    assert fill(shown("RandomBrightness", plain(128))[:, 0, 0, 0] / 255 - 128 / 255, -far / 2, far / 2)
    assert fill(contrasts(shown("RandomContrast", TWO_TONES)) / 50, 1 - far, 1 + far)
    assert fill(
        hsv(shown("RandomSaturation", plain((200, 150, 150))))[:, 1] / 0.25,
        1 - far,
        1 + far,
        0.4 - 0.15 * (strength == 1),
    )
    sharpness = contrasts(shown("RandomSharpness", TWO_TONES)[:, 3:5, 1:-1]) / 50
    assert sharpness.min() < 1 < sharpness.max()
    kept = np.unique(shown("RandomPosterization", plain(255))[:, 0, 0, 0])
    assert kept.min() == 256 - 2 ** round(4 * strength)  # at most four of the eight bits are lost
    ramp = np.repeat(np.arange(256, dtype=np.float32).reshape(16, 16, 1), 3, axis=-1)
    inverted = (shown("Solarize", ramp) != ramp).any(axis=-1).mean(axis=(1, 2))
    assert fill(inverted, 0, strength)


def test_equalize_looks_at_one_image_at_a_time():
    equalize = next(change for change in RandAugment(1).changes if type(change).__name__ == "Equalize")
    ramp = np.repeat(np.arange(64, dtype=np.float32).reshape(8, 8, 1), 3, axis=-1)
    alone = np.asarray(equalize(tf.constant(ramp[None]), training=True))[0]
    beside = np.asarray(equalize(tf.constant(np.stack([ramp, ramp + 128])), training=True))[0]
    np.testing.assert_array_equal(alone, beside)
    assert (alone.min(), alone.max()) == (0, 255)


# ------------------------------------------------------------------------------------------------- mixing, balancing


@pytest.mark.parametrize("shape", [(6, 5, 5, 4), (6, 4)])
def test_mixup_blends_images_as_it_blends_targets(shape: tuple[int, ...]) -> None:
    mixer = MixUpCutMix(AugmentConfig(mixup=0.5), spatial=len(shape) == 4)
    targets = np.eye(6, dtype=np.float32)
    features = (np.ones(shape, np.float32).T * np.arange(6)).T  # image k is full of k
    mixer.reseed((0, 1))
    mixed, blended = (np.asarray(part) for part in mixer(tf.constant(features), tf.constant(targets)))
    assert mixed.shape == shape
    np.testing.assert_allclose(mixed.reshape(6, -1).mean(1), blended @ np.arange(6), atol=1e-4)
    assert (blended.max(axis=1) < 0.999).any()
    mixer.reseed((0, 1))
    again = mixer(tf.constant(features), tf.constant(targets))
    np.testing.assert_array_equal(again[0], mixed)


def test_cutmix_pastes_a_rectangle_and_needs_places() -> None:
    assert not MixUpCutMix(AugmentConfig(cutmix=1), spatial=False)
    mixer = MixUpCutMix(AugmentConfig(cutmix=1), spatial=True)
    features = (np.ones((4, 8, 8, 2), np.float32).T * np.arange(4)).T
    mixer.reseed((3,))
    mixed, _ = mixer(tf.constant(features), tf.eye(4))
    assert set(np.unique(mixed)) <= {0, 1, 2, 3}
    assert any(len(np.unique(image)) == 2 for image in np.asarray(mixed))


@pytest.mark.parametrize("side", [2, 3, 7])
def test_cutmix_weighs_targets_by_what_it_pasted(side: int) -> None:
    """Every place holds the one-hot vector of its image: the mean over the places is what the target must be."""
    mixer = MixUpCutMix(AugmentConfig(cutmix=1), spatial=True)
    features = np.tile(np.eye(8, dtype=np.float32)[:, None, None], (1, side, side, 1))
    mixer.reseed((7,))
    mixed, blended = (np.asarray(part) for part in mixer(tf.constant(features), tf.eye(8)))
    np.testing.assert_allclose(blended, mixed.mean(axis=(1, 2)), atol=1e-6)
    assert (blended.max(axis=1) < 1).any()


@pytest.mark.slow
def test_rand_augment_is_decided_by_the_key_alone() -> None:
    batch = np.random.default_rng(0).integers(0, 255, (3, 24, 24, 3), dtype=np.uint8)
    augmenter = Augmenter(AugmentConfig(rand_augment=0.5))
    first, other, again = (augmenter(batch, key).numpy() for key in ((1, 2), (1, 3), (1, 2)))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
