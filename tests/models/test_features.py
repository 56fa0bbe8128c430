"""Cached features: computed once, never stale, the same wherever they are kept."""

import dataclasses
import re
import shutil
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

from finetune.config import AugmentConfig, DataConfig, ModelConfig
from finetune.data import image_reader, open_dataset
from finetune.models import (
    FEATURE_BATCH,
    CachedFeatures,
    FeatureExtractor,
    FeatureRequest,
    LiveFeatures,
    build_classifier,
    compute_features,
    feature_plan,
    features_folder,
    open_features,
    plan_features,
    prepare_features,
)
from finetune.utils import DataError, ResourceError

TINY = {"backbone": "tiny", "weights": "none"}
NONE, VIEWS = AugmentConfig(), AugmentConfig(preset="light", views=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, images):
    """6 images of each class."""
    root = tmp_path_factory.mktemp("few")
    for path in sorted(images.glob("*/0[0-5].png")):
        (root / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, root / path.parent.name / path.name)
    return root


@pytest.fixture(scope="module")
def dataset(folder, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        return opened(folder)


def opened(folder, seed=0):
    shares = {"train": 0.5, "validation": 0.25, "test": 0.25}
    return open_dataset(DataConfig(folder=folder, split=shares), seed=seed)


def built(**changes):
    return build_classifier(ModelConfig(**{**TINY, **changes}), ("a", "b", "c"))


@pytest.fixture(scope="module")
def tiny():
    return built()


@pytest.fixture
def reads(monkeypatch):
    """The files that were read, in order."""
    seen = []
    real = image_reader

    def counting(paths, transform):
        read = real(paths, transform)

        def count(index):
            seen.append(paths[index])
            return read(index)

        count.size = read.size
        return count

    monkeypatch.setattr(feature_plan, "image_reader", counting)
    return seen


def prepare(classifier, dataset, cuts=None, augment=NONE, seed=0, **how):
    cuts = [classifier.head_input] if cuts is None else cuts
    return prepare_features(FeatureRequest(classifier, dataset, cuts, augment, seed), **how)


def rows(source, dataset, epoch=None, split=None):
    indices = np.arange(len(dataset)) if split is None else dataset.indices(split)
    return np.concatenate(list(source.batches(indices, epoch, 7)))


# ---------------------------------------------------------------------------------------------------- the cache


def test_a_second_time_nothing_is_read(tiny, dataset, reads):
    cuts = [tiny.head_input, tiny.blocks()[-1].input]
    first = prepare(tiny, dataset, cuts)
    assert sorted(reads) == sorted(dataset.paths(range(len(dataset))))  # each once, for both cuts
    second = prepare(tiny, dataset, cuts)
    assert len(reads) == len(dataset)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(rows(one, dataset), rows(other, dataset))


@pytest.mark.slow
def test_what_does_not_change_the_features_does_not_spoil_the_cache(tiny, folder, dataset, reads):
    prepare(tiny, dataset, augment=VIEWS, seed=1)
    del reads[:]
    prepare(tiny, dataset, seed=2)  # without augmentation the seed changes nothing
    prepare(built(dropout=0.5), dataset)
    other_split = opened(folder, seed=9)
    assert not np.array_equal(other_split.splits, dataset.splits)
    prepare(tiny, other_split)
    assert reads == []


def other_weights(tiny, dataset):
    other = built()
    other.model.set_weights(tiny.model.get_weights())
    gamma = other.model.get_layer("block1_bn").gamma
    gamma.assign(np.nextafter(gamma.numpy(), np.float32(2)))
    return other, dataset


def other_image(tiny, dataset):
    names, hashes = ((values[-1], *values[1:]) for values in (dataset.names, dataset.hashes))
    return tiny, dataclasses.replace(dataset, names=names, hashes=hashes)


CHANGES = {
    "weights": other_weights,
    "an image": other_image,
    "transform": lambda tiny, dataset: (built(resize="squash"), dataset),
    "cut": lambda tiny, dataset: (tiny, dataset, [tiny.blocks()[-1].input]),
    "pooling": lambda tiny, dataset: (built(pooling="max"), dataset),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changes_the_features_is_computed_again(tiny, dataset, reads, change, monkeypatch):
    prepare(tiny, dataset)
    del reads[:]
    prepare(*change(tiny, dataset))
    assert len(reads) == len(dataset)


@pytest.mark.slow
def test_augmented_views_are_kept_by_seed_and_settings(tiny, dataset, reads):
    train = len(dataset.indices("train"))
    prepare(tiny, dataset, augment=VIEWS, seed=1)
    assert len(reads) == len(dataset) + 2 * train
    for augment, seed, needed in (
        (VIEWS, 1, 0),
        (VIEWS, 2, 2 * train),  # the undisturbed images are known
        (VIEWS.model_copy(update={"rotate": 45.0}), 1, 2 * train),
        (VIEWS.model_copy(update={"views": 3}), 1, train),  # the third view is new
    ):
        del reads[:]
        prepare(tiny, dataset, augment=augment, seed=seed)
        assert len(reads) == needed


def emptied(content):
    return b""


def cut_short(content):
    return content[: len(content) - 100]


def overwritten(content):
    return bytes(len(content))


@pytest.mark.parametrize("damage", [emptied, cut_short, overwritten])
def test_a_damaged_file_is_made_again(tiny, dataset, reads, damage):
    before = rows(prepare(tiny, dataset)[0], dataset)
    (file,) = features_folder().glob("*.npy")
    file.write_bytes(damage(file.read_bytes()))
    del reads[:]
    np.testing.assert_array_equal(rows(prepare(tiny, dataset)[0], dataset), before)
    assert len(reads) == len(dataset)


def test_a_killed_extraction_leaves_nothing_behind(tiny, dataset, monkeypatch):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tiny, dataset, progress=stop)
    assert list(features_folder().iterdir()) == []


# ------------------------------------------------------------------------------------------------ where it goes


Disk = namedtuple("Disk", "total used free")
LACK = 1000  # bytes: nothing fits
HALF = 18 * 32 * 4  # of 18 images' 32 features: as DISK_SHARE is a half, they fit in half precision alone


@pytest.fixture(scope="module")
def full(tiny, dataset):
    return rows(prepare(tiny, dataset, policy="off")[0], dataset)


@pytest.mark.parametrize(
    ("disk", "memory", "place", "dtype", "sentence"),
    [
        (10**9, 10**9, np.memmap, "float32", "on disk"),
        (HALF, 10**9, np.memmap, "float16", r"on disk \(half precision, to fit\)"),
        (LACK, 10**9, np.ndarray, "float32", "on memory"),
        (LACK, HALF * 1.3, np.ndarray, "float16", r"on memory \(half precision, to fit\)"),
    ],
)
def test_auto_takes_what_there_is_room_for(tiny, dataset, full, monkeypatch, disk, memory, place, dtype, sentence):
    monkeypatch.setattr(feature_plan, "available_memory", lambda: int(memory))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(10**12, 10**12 - disk, disk))
    said = []
    (source,) = prepare(tiny, dataset, say=said.append)
    assert type(source.views[0]) is place
    assert source.views[0].dtype == dtype
    assert len(said) == 2
    assert pytest.approx(rows(source, dataset), rel=1e-3, abs=1e-4) == full
    assert rows(source, dataset).dtype == np.float32
    assert re.search(sentence, said[0])


@pytest.mark.parametrize(
    ("policy", "kind"), [("auto", CachedFeatures), ("memory", CachedFeatures), ("off", LiveFeatures)]
)
def test_a_cache_folder_that_cannot_be_written_is_no_error(tiny, dataset, tmp_path, monkeypatch, policy, kind):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "file"))
    said = []
    (source,) = prepare(tiny, dataset, policy=policy, say=said.append)
    assert isinstance(source, kind)
    assert any("FINETUNE_CACHE names another folder" in line for line in said) == (policy == "auto")


def test_without_any_room_every_epoch_goes_through_the_network(tiny, dataset, monkeypatch):
    monkeypatch.setattr(feature_plan, "available_memory", lambda: LACK)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(10**12, 10**12, LACK))
    said = []
    (source,) = prepare(tiny, dataset, say=said.append)
    assert isinstance(source, LiveFeatures)
    assert len(said) == 1
    assert "every epoch goes through the whole network" in said[0]


ROOM = 10**9


def planned(tiny, dataset, monkeypatch, disk, memory, numerics=None, augment=NONE, **how):
    """The source, and what a run would note of it, with so much room."""
    monkeypatch.setattr(feature_plan, "available_memory", lambda: int(memory))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Disk(10**12, 10**12 - disk, int(disk)))
    plan = plan_features(FeatureRequest(tiny, dataset, [tiny.head_input], augment, 0), numerics=numerics, **how)
    for view in plan.missing_views():
        list(compute_features(plan, view))
    (source,) = open_features(plan)
    return source, plan.numerics


def test_features_too_large_for_half_precision_are_not_made_infinite(dataset, monkeypatch):
    classifier = built()
    kernel = classifier.model.get_layer("block3_depthwise").kernel
    kernel.assign(kernel.numpy() * 1e8)
    with pytest.raises(
        ResourceError, match=r"Features of this network reach [\d,]{7,}, too much for the half precision"
    ):
        planned(classifier, dataset, monkeypatch, HALF, LACK)
    planned(classifier, dataset, monkeypatch, 10**9, LACK)  # there is room for full precision


@pytest.mark.slow
def test_a_resumed_run_sees_the_numbers_it_began_with_whatever_the_room(tiny, dataset, full, monkeypatch):
    source, numerics = planned(tiny, dataset, monkeypatch, HALF, LACK)
    assert numerics == "float16"
    half = rows(source, dataset)
    assert (half != full).any()
    shutil.rmtree(features_folder())
    again, numerics = planned(tiny, dataset, monkeypatch, ROOM, ROOM, numerics)
    assert numerics == "float16"
    np.testing.assert_array_equal(rows(again, dataset), half)

    source, numerics = planned(tiny, dataset, monkeypatch, ROOM, ROOM)
    assert numerics == "float32"
    again, _ = planned(tiny, dataset, monkeypatch, LACK, LACK, numerics)  # they are on the disk, and need no room
    assert again.views[0].dtype == "float32"
    shutil.rmtree(features_folder())
    again, _ = planned(tiny, dataset, monkeypatch, LACK, LACK, numerics)  # computed again they are the same
    assert isinstance(again, LiveFeatures)
    np.testing.assert_array_equal(rows(again, dataset), full)


def test_a_resumed_run_that_cannot_see_them_is_refused(tiny, dataset, monkeypatch):
    with pytest.raises(ResourceError, match=r"kept in float16 .* with cache=disk there is no room"):
        planned(tiny, dataset, monkeypatch, LACK, ROOM, "float16", policy="disk")
    for room, policy in ((ROOM, "off"), (LACK, "auto")):
        with pytest.raises(ResourceError, match="kept in float32"):
            planned(tiny, dataset, monkeypatch, room, room, "float32", policy=policy, augment=VIEWS)


@pytest.mark.slow
def test_a_run_that_began_without_keeping_augmented_views_goes_on_without(tiny, dataset, monkeypatch):
    source, numerics = planned(tiny, dataset, monkeypatch, LACK, LACK, augment=VIEWS)
    assert numerics == "live"
    again, _ = planned(tiny, dataset, monkeypatch, ROOM, ROOM, numerics, augment=VIEWS)
    np.testing.assert_array_equal(
        rows(again, dataset, epoch=3, split="train"), rows(source, dataset, epoch=3, split="train")
    )


@pytest.mark.slow
def test_rows_from_disk_equal_rows_from_memory(tiny, dataset):
    cuts = [tiny.head_input, tiny.blocks()[-1].input]
    disk = prepare(tiny, dataset, cuts, VIEWS, policy="disk")
    memory = prepare(tiny, dataset, cuts, VIEWS, policy="memory")
    assert len(list(features_folder().iterdir())) == 2 * 3  # cuts and views; memory leaves no file
    for one, other in zip(disk, memory, strict=True):
        assert isinstance(one.views[0], np.memmap)
        assert not isinstance(other.views[0], np.memmap)
        np.testing.assert_array_equal(rows(one, dataset), rows(other, dataset))
        np.testing.assert_array_equal(rows(one, dataset, 5, "train"), rows(other, dataset, 5, "train"))


# ------------------------------------------------------------------------------------------------------- views


@pytest.mark.slow
def test_each_image_meets_all_its_views_and_neighbours_differ(tiny, dataset):
    (source,) = prepare(tiny, dataset, augment=AugmentConfig(preset="standard", views=3))
    plain = rows(source, dataset, None, "train")
    epochs = [rows(source, dataset, epoch, "train") for epoch in range(4)]
    for image in range(len(plain)):
        met = [epoch[image] for epoch in epochs[:3]]
        assert len(np.unique([*met, plain[image]], axis=0)) == 4
    np.testing.assert_array_equal(epochs[3], epochs[0])
    assert [len(view) for view in source.views] == [len(dataset), *[len(plain)] * 3]


@pytest.mark.slow
def test_skipped_batches_are_those_that_were_seen(tiny, dataset):
    for augment, policy in ((VIEWS, "disk"), (VIEWS, "off")):
        (source,) = prepare(tiny, dataset, augment=augment, policy=policy)
        train = dataset.indices("train")
        whole = list(source.batches(train, 1, 4))
        rest = list(source.batches(train, 1, 4, skip=1))
        assert len(whole) == 2
        for one, other in zip(whole[1:], rest, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("augment", [{"preset": "light"}, {"flip": "horizontal", "rotate": 30}], ids=["preset", "own"])
def test_live_views_are_new_in_every_epoch(tiny, dataset, augment):
    (source,) = prepare(tiny, dataset, augment=AugmentConfig(**augment, views="live"))
    epochs = [rows(source, dataset, epoch, "train") for epoch in range(4)]
    plain = rows(source, dataset, None, "train")
    for one, other in [(0, 1), (1, 2), (0, 3)]:
        assert not np.array_equal(epochs[one], epochs[other])
    assert all(not np.array_equal(epoch, plain) for epoch in epochs)
    np.testing.assert_array_equal(rows(source, dataset, 2, "train"), epochs[2])


def test_live_without_any_augmentation_is_cached(tiny, dataset):
    (source,) = prepare(tiny, dataset, augment=AugmentConfig(views="live"))
    assert isinstance(source, CachedFeatures)


# ------------------------------------------------------------------------------------------------- the images


def test_features_do_not_depend_on_neighbours(tiny, images):
    """Bit for bit: in which order, and in how large groups, images go through the network says nothing."""
    paths = [str(path) for path in sorted(images.glob("*/*.png"))[:40]]
    read = image_reader(paths, tiny.transform)
    whole = np.stack([read(index) for index in range(40)])
    extract = FeatureExtractor(tiny, [tiny.blocks()[-1].input, tiny.head_input])

    def extracted(stack, size):
        parts = [extract(stack[start : start + size]) for start in range(0, len(stack), size)]
        return [np.concatenate(cut) for cut in zip(*parts, strict=True)]

    reference = extracted(whole, FEATURE_BATCH)
    order = np.random.default_rng(0).permutation(40)
    for cut, mixed in zip(reference, extracted(whole[order], 13), strict=True):
        np.testing.assert_array_equal(mixed, cut[order])
    for cut, single in zip(reference, extracted(whole, 1), strict=True):
        np.testing.assert_array_equal(single, cut)


def broken(path):
    path.write_bytes(b"\x89PNG no more")


def deleted(path):
    path.unlink()


def replaced(path):
    Image.new("RGB", (40, 40), "white").save(path)


@pytest.mark.parametrize(("change", "policy"), [(broken, "disk"), (deleted, "off")])
def test_an_image_that_broke_after_the_scan_is_a_data_error(tiny, folder, tmp_path, change, policy):
    shutil.copytree(folder, tmp_path / "pictures")
    dataset = opened(tmp_path / "pictures")
    change(tmp_path / "pictures" / "green" / "03.png")
    with pytest.raises(DataError, match=r"(?s)green/03\.png can no longer be read.*Start again"):
        rows(prepare(tiny, dataset, policy=policy)[0], dataset)
    assert not list(features_folder().glob("*.npy"))


def test_features_of_an_image_that_was_replaced_never_pass_for_those_of_the_old_one(tiny, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "pictures")
    dataset = opened(tmp_path / "pictures")
    replaced(tmp_path / "pictures" / "green" / "03.png")
    with pytest.raises(DataError, match=r"(?s)green/03\.png is not the image that was checked.*Start again"):
        prepare(tiny, dataset)
    assert not list(features_folder().glob("*.npy"))


@pytest.mark.slow
@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_are_read_as_one(tiny, images, private_cache, reads, parts):
    """72 images are three batches: one part has the last rows, and of five parts two have none."""
    dataset = opened(images)
    request = FeatureRequest(tiny, dataset, [tiny.head_input], VIEWS, 0)
    plan = plan_features(request)
    for view in plan.missing_views():
        for part in range(parts):
            list(compute_features(plan, view, part, parts))
    assert len(reads) == len(dataset) + 2 * len(dataset.indices("train"))
    assert plan.missing_views() == []
    (source,) = open_features(plan)
    shuffled = np.random.default_rng(0).permutation(dataset.indices("train"))
    assert next(source.batches(shuffled[:0], None, 4), None) is None

    (whole,) = prepare_features(request, policy="memory")
    for epoch in (None, 0, 1):
        values = [np.concatenate(list(each.batches(shuffled, epoch, 7))) for each in (source, whole)]
        np.testing.assert_array_equal(*values)


@pytest.mark.slow
def test_incomplete_parts_are_computed_again(tiny, images, private_cache, reads):
    dataset = opened(images)
    plan = plan_features(FeatureRequest(tiny, dataset, [tiny.head_input], NONE, 0))
    for part in range(2):
        list(compute_features(plan, 0, part, 2))
    next((private_cache / "features").glob("*.1-of-2.npy")).unlink()
    assert plan.missing_views() == [0]
    with pytest.raises(ResourceError, match="missing"):
        open_features(plan)
    reads.clear()
    prepare(tiny, dataset)
    assert len(reads) == len(dataset)


def test_an_image_that_comes_again_in_an_epoch_is_shown_in_another_view():
    """As oversampling repeats the images of rare classes; whatever the batches, and after a resume too."""
    views = tuple(np.full((8, 1), number, np.float32) for number in range(4))  # view k is full of k
    source = CachedFeatures(views, np.arange(8))
    order = np.array([5, 2, 5, 5, 7, 2])
    shown = np.concatenate(list(source.batches(order, 0, 2)))[:, 0]
    assert sorted(shown[order == 5]) == [1, 2, 3]
    assert len(set(shown[order == 2])) == 2
    assert np.concatenate(list(source.batches(order, 0, 2, skip=1)))[:, 0].tolist() == shown[2:].tolist()
    of_epochs = [next(source.batches(np.array([5]), epoch, 1))[0, 0] for epoch in range(3)]
    assert sorted(of_epochs) == [1, 2, 3]
    assert (np.concatenate(list(source.batches(order, None, 2))) == 0).all()
