"""Model files from strangers: each is refused in a second, in little memory, in words that say why."""

import io
import json
import pickle
import resource
import struct
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from finetune.models import Classifier, ClassifierSpec, build_network, load_classifier
from finetune.utils import FinetuneError, WeightsError

# Keras 3.15.1 saves TensorFlow variables in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning")
CLASSES = ["blue", "green", "red"]
WEIGHTS, PAGE, CONFIG = "model.weights.h5", "finetune.json", "config.json"
SPEC = {
    "backbone": "tiny",
    "image_size": 32,
    "resize": "crop",
    "pooling": "avg",
    "dropout": 0.2,
    "classes": CLASSES,
    "format": 1,
}
Members = dict[str, bytes]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("honest") / "model.keras"
    spec = ClassifierSpec(**{**SPEC, "classes": tuple(CLASSES)})
    build_network(spec, name="tiny").save(path)
    return path


def members(honest: Path) -> Members:
    with zipfile.ZipFile(honest) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(target: Path, content: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return target


# --- ways to spoil an honest file: members -> members


def page(**changes: Any) -> Callable[[Members], Members]:
    """finetune.json with other values; None removes one."""
    values = {key: value for key, value in {**SPEC, **changes}.items() if value is not None}
    return lambda content: {**content, PAGE: json.dumps(values).encode()}


def raw_page(text: bytes) -> Callable[[Members], Members]:
    return lambda content: {**content, PAGE: text}


def extra(name: str, data: bytes = b"x") -> Callable[[Members], Members]:
    return lambda content: {**content, name: data}


def h5(change: Callable[[h5py.File], object]) -> Callable[[Members], Members]:
    """The weights, changed by `change(file)`."""

    def spoil(content: Members) -> Members:
        data = io.BytesIO(content[WEIGHTS])
        with h5py.File(data, "r+") as file:
            change(file)
        return {**content, WEIGHTS: data.getvalue()}

    return spoil


def put(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        if value is not None:
            file[name] = value

    return change


def giant(file: h5py.File) -> None:
    del file["layers/dense/vars/0"]
    file.create_dataset("layers/dense/vars/0", (10**6, 10**6), "f4", chunks=(1000, 1000))


def bomb(file: h5py.File) -> None:
    file.create_dataset("bomb", data=np.zeros(30_000_000, "f4"), chunks=(1_000_000,), compression="gzip")


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((32, 3), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(32, 3))
    put("layers/dense/vars/0", None)(file)
    file.create_virtual_dataset("layers/dense/vars/0", layout)


def external(file: h5py.File) -> None:
    put("layers/dense/vars/0", None)(file)
    file.create_dataset("layers/dense/vars/0", (32, 3), "f4", external=[("/etc/passwd", 0, 384)])


def deep(file: h5py.File) -> None:
    group = file
    for _ in range(100):
        group = group.create_group("g")


def loop(file: h5py.File) -> None:
    file["layers/again"] = file["layers"]


def crowd(file: h5py.File) -> None:
    file["crowd"] = np.zeros(500_000, "f4")


def renamed(file: h5py.File) -> None:
    """Every number is there, under names that Keras does not look at."""
    file.move("layers", "elsewhere")


def swapped(file: h5py.File) -> None:
    file.move("layers/conv2d_1", "layers/x")
    file.move("layers/conv2d_2", "layers/conv2d_1")
    file.move("layers/x", "layers/conv2d_2")


def lambda_config(content: Members) -> Members:
    """What a loader that believed config.json would run. Ours never opens it, so the model is as good as before."""
    layer = {"class_name": "Lambda", "config": {"function": {"class_name": "__lambda__", "config": {"code": "4wEA"}}}}
    return {**content, CONFIG: json.dumps({"class_name": "Sequential", "config": {"layers": [layer]}}).encode()}


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was run",))


DAMAGED, RANGE, OTHER = "damaged, or not a model", "values outside their range", "not a model of finetune"
SPOILED: dict[str, tuple[Callable[[Members], Members], str]] = {
    "a file that climbs out": (extra("../../../tmp/evil"), rf"{OTHER} \(it also holds \.\./\.\./\.\./tmp/evil\)"),
    "an absolute path": (extra("/etc/cron.d/evil"), "it also holds /etc/cron.d/evil"),
    "a backslash path": (extra("..\\evil"), "it also holds"),
    "an escape sequence as name": (extra("\x1b[31mred"), r"it also holds \\x1b\[31mred"),
    "assets": (extra("assets/vocabulary.txt"), "it also holds assets"),
    "a pickle inside": (extra("data.pkl", pickle.dumps(Evil())), "it also holds data.pkl"),
    "a Lambda config and no page": (lambda c: {k: v for k, v in lambda_config(c).items() if k != PAGE}, OTHER),
    "no weights": (lambda c: {k: v for k, v in c.items() if k != WEIGHTS}, OTHER),
    "a page that is no JSON": (raw_page(b"{"), "cannot be read"),
    "a page that is a list": (raw_page(b"[1]"), "cannot be read"),
    "a page nested 100,000 deep": (raw_page(b"[" * 100_000), "cannot be read"),
    "a page that is not text": (raw_page(b"\xff\xfe\x00"), "cannot be read"),
    "a page of 5 MB": (raw_page(b" " * 5_000_000), "promises more than"),
    "a key too many": (page(code="import os"), "cannot be read"),
    "a key too few": (page(classes=None), "cannot be read"),
    "a newer format": (page(format=99), "written by a newer finetune"),
    "a format that is text": (page(format="1"), RANGE),
    "a negative format": (page(format=-1), RANGE),
    "an unknown backbone": (page(backbone="resnet51"), "no backbone 'resnet51'. Did you mean"),
    "a backbone that is a module": (page(backbone="os:system"), "no backbone"),
    "a backbone that is a number": (page(backbone=7), RANGE),
    "another backbone": (page(backbone="efficientnet_lite0"), "weights are not those of efficientnet_lite0"),
    "the largest backbone": (page(backbone="convnext_xlarge"), "weights are not those of convnext_xlarge"),
    "images of 1e9 pixels": (page(image_size=10**9), RANGE),
    "images of -32 pixels": (page(image_size=-32), RANGE),
    "images of 0 pixels": (page(image_size=0), RANGE),
    "images of True pixels": (page(image_size=True), RANGE),
    "images of 32.5 pixels": (page(image_size=32.5), RANGE),
    "images of 10^5000 pixels": (raw_page(json.dumps(SPEC).replace("32", "1" * 5000).encode()), "cannot be read"),
    "dropout NaN": (page(dropout=float("nan")), RANGE),
    "dropout 1": (page(dropout=1), RANGE),
    "dropout true": (page(dropout=False), RANGE),
    "a strange resize": (page(resize="exec"), RANGE),
    "a strange pooling": (page(pooling=["avg"]), RANGE),
    "ImageNet's head with 3 classes": (page(pooling="imagenet"), RANGE),
    "one class": (page(classes=["a"]), RANGE),
    "twice the same class": (page(classes=["a", "a", "b"]), RANGE),
    "classes in a text": (page(classes="abc"), RANGE),
    "a class that is a number": (page(classes=["a", "b", 3]), RANGE),
    "a class with an escape sequence": (page(classes=["a", "b", "\x1b]0;owned\x07"]), RANGE),
    "a class with a line break": (page(classes=["a", "b", "c\nd"]), RANGE),
    "a class turned right to left": (page(classes=["a", "b", "\u202egpj.exe"]), RANGE),
    "a class of a million letters": (page(classes=["a", "b", "c" * 10**6]), RANGE),
    "a million classes": (page(classes=[str(n) for n in range(300_000)]), RANGE),
    "100,000 classes without weights": (page(classes=[str(n) for n in range(99_999)]), "weights are not those"),
    "two classes more than weights": (page(classes=[*CLASSES, "x", "y"]), "missing 1 of shape"),
    "NaN in the weights": (h5(put("layers/dense/vars/1", np.array([1, np.nan, 2], "f4"))), "NaN or infinity in"),
    "infinity in the weights": (h5(put("layers/dense/vars/1", np.array([1, np.inf, 2], "f4"))), "NaN or infinity in"),
    "a weight missing": (h5(put("layers/dense/vars/0", None)), r"missing 1 of shape \(32, 3\)"),
    "a weight of another shape": (h5(put("layers/dense/vars/0", np.zeros((3, 32), "f4"))), "missing 1 of shape"),
    "weights under other names": (h5(renamed), "do not fit tiny"),
    "two layers swapped": (h5(swapped), "do not fit tiny"),
    "a soft link": (h5(put("layers/dense/vars/0", h5py.SoftLink("/layers/dense/vars/1"))), "link to somewhere else"),
    "an external link": (h5(put("layers/x", h5py.ExternalLink("/etc/passwd", "/"))), "link to somewhere else"),
    "virtual data": (h5(virtual), "data in another file"),
    "external data": (h5(external), "data in another file"),
    "a terabyte promised": (h5(giant), "claims 1000000000000 numbers"),
    "a compression bomb in HDF5": (h5(bomb), "more than such a file can hold|far more than"),
    "100 groups deep": (h5(deep), "too deep"),
    "a group in itself": (h5(loop), "there twice"),
    "a crowd of strangers": (h5(crowd), "far more than"),
    "text for weights": (h5(put("layers/dense/vars/1", np.array([b"a", b"b", b"c"]))), "not numbers"),
    "objects for weights": (h5(put("layers/dense/vars/1", h5py.Empty("f4"))), "not an array"),
    "HTML for weights": (lambda c: {**c, WEIGHTS: b"<!DOCTYPE html>" + bytes(40_000)}, "not an HDF5 file"),
    "no bytes for weights": (lambda c: {**c, WEIGHTS: b""}, "weights are not those"),
    "weights cut in half": (lambda c: {**c, WEIGHTS: c[WEIGHTS][: len(c[WEIGHTS]) // 2]}, "damaged"),
}


def forged_size(content: bytes) -> bytes:
    """The list of contents says that the weights have 4 GB."""
    at = content.rindex(b"PK\x01\x02")
    while not content[at + 46 :].startswith(WEIGHTS.encode()):
        at = content.rindex(b"PK\x01\x02", 0, at)
    return content[: at + 24] + struct.pack("<I", 0xFFFFFFF0) + content[at + 28 :]


def doubled(content: bytes) -> bytes:
    target = io.BytesIO(content)
    with warnings.catch_warnings(), zipfile.ZipFile(target, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(PAGE, json.dumps({**SPEC, "classes": ["x", "y", "z"]}))
    return target.getvalue()


def linked(content: bytes) -> bytes:
    target = io.BytesIO(content)
    with zipfile.ZipFile(target, "a") as archive:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return target.getvalue()


def bombed(content: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) if name != WEIGHTS else bytes(150_000_000))
    return target.getvalue()


WHOLE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda _: b"", r"damaged, .*\(0 bytes"),
    "a login page": (lambda _: b"<!DOCTYPE html><html>Please log in</html>", r"starts with b'<!DOCTYP'"),
    "a Git LFS pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1\n", r"starts with b'version '"),
    "a pickle": (lambda _: pickle.dumps(Evil()), DAMAGED),
    "a torch file": (lambda _: b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", DAMAGED),
    "an h5 file": (lambda _: b"\x89HDF\r\n\x1a\n" + bytes(100), DAMAGED),
    "a numpy archive": (lambda _: _npz(), OTHER),
    "cut in half": (lambda content: content[: len(content) // 2], DAMAGED),
    "one byte short": (lambda content: content[:-1], DAMAGED),
    "without its first 40 kilobytes": (lambda content: content[40_000:], f"{DAMAGED}|{OTHER}"),
    "a flipped byte in the weights": (lambda c: c[:60_000] + bytes([c[60_000] ^ 1]) + c[60_001:], "CRC"),
    "two pages": (doubled, "it also holds finetune.json"),
    "a symbolic link": (linked, "it also holds link"),
    "4 GB claimed": (forged_size, "promises more than|damaged"),
    "a zip bomb": (bombed, "promises more than"),
}


def _npz() -> bytes:
    target = io.BytesIO()
    np.savez(target, x=np.zeros(3))
    return target.getvalue()


def refused(path: Path, words: str) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.monotonic()
    with pytest.raises(WeightsError, match=words) as caught:
        load_classifier(path)
    assert time.monotonic() - begin < 10  # measured below 1 s; a bomb would take far longer, a busy machine not
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000  # KB
    text = str(caught.value)
    assert str(path) in text
    assert "\x1b" not in text
    assert len(text) < 1500


@pytest.fixture(autouse=True, scope="module")
def warm(honest: Path) -> None:
    """Imports and first calls are not what is measured."""
    load_classifier(honest)


@pytest.mark.parametrize("what", SPOILED)
def test_spoiled_members(what: str, honest: Path, tmp_path: Path) -> None:
    spoil, words = SPOILED[what]
    compression = zipfile.ZIP_DEFLATED if what == "a million classes" else zipfile.ZIP_STORED
    refused(pack(tmp_path / "model.keras", spoil(members(honest)), compression), words)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


@pytest.mark.parametrize("what", WHOLE)
def test_spoiled_files(what: str, honest: Path, tmp_path: Path) -> None:
    spoil, words = WHOLE[what]
    path = tmp_path / "model.keras"
    path.write_bytes(spoil(honest.read_bytes()))
    refused(path, words)


@pytest.mark.parametrize("safe", [True, False])
def test_code_in_the_config_is_never_looked_at(honest: Path, tmp_path: Path, safe: bool) -> None:
    """Nor where somebody else in the process has called `keras.config.enable_unsafe_deserialization`."""
    from finetune.utils import keras

    path = pack(tmp_path / "model.keras", lambda_config(members(honest)))
    with keras.src.saving.serialization_lib.SafeModeScope(safe):
        assert same(load_classifier(path), load_classifier(honest))


def same(one: Classifier, other: Classifier) -> bool:
    pairs = zip(one.model.get_weights(), other.model.get_weights(), strict=True)
    return one.spec == other.spec and all(np.array_equal(a, b) for a, b in pairs)


def test_folders_that_are_no_run(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"\x08\x01")
    with pytest.raises(WeightsError, match=r"holds no model\.keras"):
        load_classifier(tmp_path / "saved")
    with pytest.raises(WeightsError, match="no such"):
        load_classifier(tmp_path / "model.keras")


def test_a_weight_that_keras_skips_is_noticed(honest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras might one day pass over a layer that it does not find; then its first values must not stay."""
    from finetune.utils import keras

    monkeypatch.setattr(keras.Model, "load_weights", lambda self, path: None)
    with pytest.raises(WeightsError, match="nothing for"):
        load_classifier(honest)


@pytest.mark.slow
def test_random_mutations_are_refused_or_harmless(honest: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    good, content = load_classifier(honest), honest.read_bytes()
    path = tmp_path / "model.keras"
    path.write_bytes(content)
    outcomes = {"refused": 0, "equal": 0}
    end = time.monotonic() + 6
    while time.monotonic() < end:
        mutated = bytearray(content)
        for _ in range(random.integers(1, 4)):
            # The lists of contents are small beside the weights, and more is done with them.
            place = random.integers(len(mutated)) if random.random() < 0.3 else -random.integers(1, 900)
            mutated[place] = random.integers(256)
        path.write_bytes(bytes(mutated))
        try:
            loaded = load_classifier(path)
        except FinetuneError:
            outcomes["refused"] += 1
        else:
            assert same(loaded, good) or loaded.spec != good.spec
            outcomes["equal"] += 1
    assert outcomes["refused"] > 50
