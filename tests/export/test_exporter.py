"""Exports say what the classifier says, in the runtime that will run them, or they do not come to be."""

import dataclasses
import functools
import json
import shutil
import zipfile
from contextlib import ExitStack

import numpy as np
import pytest
import yaml
from drawing import leave_out_drawing

from finetune import api
from finetune.cli import main as cli
from finetune.config import load_config
from finetune.evaluation import evaluate as assessment, metrics as evaluation
from finetune.export import exporter as export, formats as exporters, model_card as card, parity
from finetune.models import RiskCoveragePoint
from finetune.training import experiment
from finetune.utils import CheckFailed, UsageError, WeightsError, errors

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving
ALWAYS = {"README.md", "classes.txt", "export.json"}
FILES = {
    "keras": {"model.keras"},
    "saved_model": {"1/saved_model.pb", "1/fingerprint.pb", "1/variables/variables.index",
                    "1/variables/variables.data-00000-of-00001"},
    "litert": {"model.tflite"},
    "onnx": {"model.onnx"},
    "openvino": {"model.xml", "model.bin"},
}  # fmt: skip
VARIANTS = [(name, way) for name, one in exporters.EXPORT_FORMATS.items() for way in (None, *one.quantize)]


@pytest.fixture(scope="module")
def run(images, common_cache, tmp_path_factory):
    """A run that tells red from green from blue, with 15 test images."""
    settings = {
        "name": "colours",
        "recipe": "none",
        "output": str(tmp_path_factory.mktemp("runs")),
        "data": {"folder": str(images), "split": {"train": 0.6, "validation": 0.2, "test": 0.2}},
        "model": {"backbone": "tiny", "weights": "none"},
        "head": {"epochs": 8, "batch_size": 8, "learning_rate": 0.03},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_CACHE", str(common_cache))
        leave_out_drawing(patch)
        return experiment.train_config(load_config(settings)).run.path


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """`exported(format_name, quantize)`: the run in that format, exported once to the default folder."""
    root = tmp_path_factory.mktemp("exported")

    @functools.cache
    def export_once(format_name, quantize):
        need(format_name)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            result = export.export_classifier(run, format_name, quantize=quantize)
        assert str(result.folder) == str(export.default_folder(run, format_name, quantize))
        return dataclasses.replace(result, folder=root / result.folder)

    return lambda format_name, quantize=None: export_once(format_name, quantize)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def need(format_name):
    if missing := errors.missing_packages(exporters.EXPORT_FORMATS[format_name].packages):
        pytest.skip(f"needs {', '.join(missing)}")


def typed(capsys, *command):
    code = cli.main([str(word) for word in command])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_command_line_knows_every_format(capsys):
    assert FILES.keys() == exporters.EXPORT_FORMATS.keys()
    with pytest.raises(SystemExit):
        typed(capsys, "export", "--help")
    assert ",".join(FILES) in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # of the short program in the card
@pytest.mark.parametrize(("format_name", "quantize"), VARIANTS)
def test_an_export_is_whole_equal_and_explains_itself(
    run, exported, images, monkeypatch, capsys, format_name, quantize
):
    made = exported(format_name, quantize)
    found = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()}
    assert found == ALWAYS | FILES[format_name]
    facts = json.loads((made.folder / "export.json").read_text())
    assert facts == json.loads(json.dumps(made.facts))
    assert facts["files"].keys() == FILES[format_name] | {"classes.txt"}
    assert facts["parity"]["n"] == 15
    assert facts["parity"]["agreement"] >= facts["parity"]["limit"]["agreement"]
    if quantize is None:
        assert facts["parity"]["largest_difference"] <= 1e-4
    assert facts["accuracy"]["n"] == 15
    assert (made.folder / "classes.txt").read_text().splitlines() == ["blue", "green", "red"]
    if quantize is None:  # the program is the same when quantised
        image = images / "red" / "00.png"
        assert (
            program_prints(made.folder, image, monkeypatch, capsys)
            == api.load(run).predict(image)[0].predictions[0].name
        )


def program_prints(folder, image, monkeypatch, capsys):
    """The class that the program in the model card prints, which is run in the folder and knows no finetune."""
    program = (folder / "README.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    assert "finetune" not in program
    shutil.copy(image, folder / "image.jpg")
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(program, "README.md", "exec"), {})
    name, probability = capsys.readouterr().out.split()
    assert 1 / 3 <= float(probability) <= 1
    return name


@pytest.mark.slow
def test_a_keras_export_goes_back_into_every_command(capsys, run, images, place):
    code, out, _ = typed(capsys, "export", run, "--format", "keras", "--output", "mine", "--json")
    assert (code, json.loads(out)["folder"]) == (0, "mine")
    image = images / "green" / "01.png"
    code, out, _ = typed(capsys, "predict", image, "--model", "mine", "--json")
    direct = typed(capsys, "predict", image, "--model", run, "--json")[1]
    assert json.loads(out) == json.loads(direct)
    assert typed(capsys, "evaluate", "mine", "--data", images)[0] == 0
    assert typed(capsys, "explain", image, "--model", "mine", "--figure", "why.png")[0] == 0


@pytest.mark.slow
def test_other_formats_are_not_opened_and_the_message_says_why(capsys, exported, images):
    folder = exported("saved_model").folder
    code, _, err = typed(capsys, "predict", images / "red" / "00.png", "--model", folder)
    assert code == 4
    assert "an export for other programs" in err
    assert "Give the run" in err


@pytest.mark.slow
def test_an_export_of_an_export(exported, place):
    first = exported("keras")
    second = export.export_classifier(first.folder, "keras", output=place / "again")
    assert second.parity.largest_difference <= 1e-4
    assert "scikit-learn" in second.facts["pictures"]  # the run's images are not part of an export
    assert second.after is None


@pytest.mark.slow
def test_a_saved_model_takes_files_and_pixels(exported, images):
    made = exported("saved_model")
    decode = exporters.EXPORT_FORMATS["saved_model"].open_bytes(made.folder)
    path = images / "blue" / "03.png"
    assert np.argmax(decode(path.read_bytes())) == 0
    assert decode(b"no image") is None
    assert made.bytes_parity.n == 15
    assert made.bytes_parity.agreement >= 0.97


@pytest.mark.slow
def test_litert_carries_its_labels(exported):
    made = exported("litert")
    path = made.folder / "model.tflite"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["labels.txt"]
        assert archive.read("labels.txt").decode().splitlines() == ["blue", "green", "red"]
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(path))
    (entry,) = [one for one in model.metadata if one.name == b"TFLITE_METADATA"]
    content = bytes(model.buffers[entry.buffer].data)
    assert content[4:8] == b"M001"
    assert b"labels.txt" in content


# ------------------------------------------------------------------------------------------------- the gate


def replace_keras(monkeypatch, **changes):
    """The Keras format with another `write` or `open`, until the test ends."""
    formats = dict(exporters.EXPORT_FORMATS)
    monkeypatch.setattr(exporters, "EXPORT_FORMATS", formats)
    formats["keras"] = dataclasses.replace(formats["keras"], **changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda answers: answers[:, ::-1],
        lambda answers: answers + np.float32(2e-4),
        lambda answers: answers * np.float32(np.nan),
    ],
)
def test_an_export_that_says_something_else_fails_and_leaves_nothing(monkeypatch, run, place, change):
    open_keras = exporters.EXPORT_FORMATS["keras"].open

    def open_changed(folder):
        forward = open_keras(folder)
        return lambda pixels: change(forward(pixels))

    replace_keras(monkeypatch, open=open_changed)
    with pytest.raises(CheckFailed, match="does not predict what the classifier predicts"):
        export.export_classifier(run, "keras", output=place / "out" / "mine")
    assert list((place / "out").iterdir()) == []


def test_a_converter_that_fails_is_one_message_and_leaves_nothing(monkeypatch, run, place):
    def fail(job, folder):
        (folder / "half").write_text("x")
        raise RuntimeError("an operation\nthat nobody knows")

    replace_keras(monkeypatch, write=fail)
    with pytest.raises(WeightsError, match="could not be converted to Keras: RuntimeError: an operation that nobody"):
        export.export_classifier(run, "keras", output=place / "mine")
    assert not (place / "mine").exists()


def test_too_little_accuracy_fails_and_leaves_nothing(capsys, run, place):
    code, *_ = typed(capsys, "export", run, "--format", "keras", "--output", "mine", "--assert-accuracy", "1")
    accuracy = api.evaluate(run).accuracy.value
    assert code == (0 if accuracy == 1 else 7)
    assert (place / "mine").exists() == (accuracy == 1)


def test_evaluate_demands_an_accuracy_too(capsys, run):
    accuracy = api.evaluate(run).accuracy.value
    assert typed(capsys, "evaluate", run, "--assert-accuracy", accuracy)[0] == 0
    with pytest.raises(CheckFailed, match="no test images"):
        assessment.require_accuracy(None, 0.9)


def test_an_accuracy_below_the_demand_is_shown_with_its_interval():
    assessment.require_accuracy(evaluation.wilson_interval(93, 100), 0.93)
    with pytest.raises(
        CheckFailed, match=r"accuracy is 92.00% \(95 % interval 85.0% to 95.9%\), and 93.00% is required"
    ):
        assessment.require_accuracy(evaluation.wilson_interval(92, 100), 0.93)


def test_ties_count_as_agreement_and_undecodable_files_are_counted():
    before = np.array([[0.50001, 0.49999], [0.9, 0.1], [0.3, 0.7]])
    after = np.array([[0.49999, 0.50001], [0.9, 0.1], [np.nan, np.nan]])
    found = parity.compare_file_bytes(before, after)
    assert (found.n, found.agreement, found.undecodable) == (2, 1.0, 1)
    assert found.largest_difference == pytest.approx(2e-5)
    assert parity.compare_outputs(before[1:2], before[1:2, ::-1]).agreement == 0


@pytest.mark.parametrize("limit", parity.LIMITS.values())
def test_one_answer_that_is_not_a_number_is_too_many(limit):
    before = np.tile([0.9, 0.1], (1000, 1))
    after = before.copy()
    assert parity.compare_outputs(before, after).meets(limit)
    after[7] = np.nan
    assert not parity.compare_outputs(before, after).meets(limit)


# ------------------------------------------------------------------------------------------------ what is asked


def test_a_format_of_ones_own_is_written_proven_and_described(monkeypatch, run, images, place):
    """In a few lines: weights in a NumPy file, run by NumPy and Keras."""
    monkeypatch.setattr(exporters, "_formats", dict(exporters.EXPORT_FORMATS))
    monkeypatch.setattr(exporters, "EXPORT_FORMATS", exporters._formats)
    networks = []

    def write(job, folder):
        networks.append(job.network)
        np.savez(folder / "weights.npz", *job.network.get_weights())

    def open_weights(folder):
        with np.load(folder / "weights.npz") as arrays:
            networks[0].set_weights([arrays[name] for name in arrays])
        return lambda pixels: np.asarray(networks[0](pixels))

    exporters.register_export_format(
        "numpy",
        exporters.ExportFormat(
            title="NumPy", file="weights.npz", runtime="numpy", write=write, open=open_weights,
            library="numpy", requires="numpy", program="import numpy\n\nprobabilities = ...",
        ),
    )  # fmt: skip
    result = export.export_classifier(run, "numpy")
    assert result.parity.n == 15
    assert result.parity.agreement == 1
    assert "Exported to NumPy" in (result.folder / "README.md").read_text()


def test_a_missing_package_is_named_with_its_extra(capsys, monkeypatch, run, place):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = typed(capsys, "export", run, "--format", "onnx")
    assert code == 2
    assert "ONNX needs onnx, onnxruntime, tf2onnx, not installed here" in err
    assert "pip install 'finetune[onnx]'" in err


def test_extras_bring_what_the_formats_need():
    import tomllib
    from pathlib import Path

    extras = tomllib.loads((Path(cli.__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for format in exporters.EXPORT_FORMATS.values():
        if format.packages:
            brought = {requirement.split(">")[0].replace("-", "_") for requirement in extras[format.extra]}
            assert set(format.packages) <= brought


@pytest.mark.parametrize(
    ("format_name", "quantize"), [("keras", "int8"), ("saved_model", "float16"), ("onnx", "float16")]
)
def test_what_cannot_be_quantised_is_reported_before_anything_is_loaded(format_name, quantize):
    with pytest.raises(UsageError, match=f"not exported as {quantize}"):
        export.export_classifier("nowhere", format_name, quantize=quantize)


def test_a_folder_that_exists_is_left_alone(run, place):
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        export.export_classifier(run, "keras", output=place / "mine")
    assert (place / "mine" / "thesis.txt").read_text() == "precious"


def test_images_may_be_given(run, images, place, capsys):
    (place / "bad.png").write_text("no image")
    code, out, err = typed(capsys, "export", run, "--format", "keras", "--images", images / "red", "bad.png", "--json")
    assert code == 0
    assert json.loads(out)["parity"]["n"] == 24
    assert json.loads(out)["accuracy"] is None
    assert "1 of 25 images cannot be read" in err


def test_asserting_an_accuracy_needs_labels(run, images, place):
    with pytest.raises(UsageError, match="needs labelled images"):
        export.export_classifier(run, "keras", images=[str(images)], assert_accuracy=0.5)


def test_int8_of_a_backbone_needs_images(tmp_path):
    with pytest.raises(UsageError, match="--images FOLDER"):
        parity.choose_images("efficientnet_lite0", quantize="int8", progress=print, stack=ExitStack())


def test_given_images_are_either_for_calibration_or_for_the_proof(images):
    found = parity.choose_images("x", [str(images)], quantize="int8", progress=print, stack=ExitStack())
    assert len(found.paths) == len(found.calibration) == 36
    assert not set(found.paths) & set(found.calibration)


def test_the_sample_images_are_photos(tmp_path):
    paths = parity.write_sample_images(tmp_path)
    assert len(paths) == 24


# -------------------------------------------------------------------------------------------------- the card


def test_the_card_is_one_for_hugging_face(run, place):
    made = export.export_classifier(run, "keras")
    text = (made.folder / "README.md").read_text("utf-8")
    _, front, body = text.split("---\n", 2)
    header = yaml.safe_load(front)
    assert header["pipeline_tag"] == "image-classification"
    (model,) = header["model-index"]
    (result,) = model["results"]
    accuracy = next(one for one in result["metrics"] if one["type"] == "accuracy")
    assert accuracy["value"] == pytest.approx(made.after.value, abs=1e-4)
    assert "95 % interval" in accuracy["name"]
    for section in ("## Data", "## Numbers", "## Limits", "## How to use", "## Files"):
        assert section in body
    assert "42 training, 15 validation and\n15 test images" in body


def test_thresholds_travel_with_an_export():
    rows = ((0.5, 0.93, 1.0, 1000), (0.7, 0.965, 0.9, 900), (0.8, 0.9875, 0.8, 800))
    table = [RiskCoveragePoint(*row) for row in rows]
    thresholds = export.precision_thresholds(table)
    assert [point["threshold"] for point in thresholds] == [0.5, 0.7, 0.8]  # of 99 % there is none
    assert export.precision_thresholds(()) == []


def test_names_cannot_break_the_card():
    assert card.escape_markdown("a|b <script> *c* [d](e)") == r"a\|b \<script\> \*c\* \[d\](e)"
