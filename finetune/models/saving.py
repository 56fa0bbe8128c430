"""Loading classifiers from files that may come from strangers: checked first, and nothing in them is executed.

    load_classifier("runs/flowers-1")     a run, a .keras file, or an ImageNet network by its name

`Classifier.save` writes a plain Keras archive with one more member, the spec. Only the spec and the weights are read.
"""

import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from finetune.backbones import check_h5, shape_counts
from finetune.models.build import build_network, load_pretrained, pretrained_spec
from finetune.models.classifier import SPEC_MEMBER, Classifier
from finetune.models.spec import FORMAT, ClassifierSpec
from finetune.utils import ConfigError, WeightsError, did_you_mean, printable, shell_command

MEMBERS = {"metadata.json", "config.json", "model.weights.h5", SPEC_MEMBER}  # what `save` writes, and no more
MAX_SPEC = 4_000_000  # bytes of the spec: a hundred thousand names
MAX_EXPANSION = 20  # bytes per byte of archive; weights hardly compress, so a real file has about 1
UNREADABLE = {
    "json_invalid",
    "model_type",
    "missing",
    "extra_forbidden",
    "string_unicode",
}  # kinds of pydantic's errors


def load_classifier(source: str | Path) -> Classifier:
    """Load a run directory, a `.keras` file of finetune, or an ImageNet network by the name of its backbone.

    Nothing in the file is executed: the network is built from the backbone registry and only numbers are read.
    Raises WeightsError for files that are damaged or of other programs, ConfigError for unknown names.
    """
    path = _find_model_file(Path(source))
    if path is None:
        return load_pretrained(str(source))
    return _open(path, name=Path(source).name if Path(source).is_dir() else path.stem)


def read_spec(source: str | Path) -> ClassifierSpec:
    """What the classifier is that `load_classifier` would load. Its mistakes are answered here without TensorFlow."""
    path = _find_model_file(Path(source))
    if path is None:
        return pretrained_spec(str(source))
    return _read_archive(path)[0]


def _find_model_file(source: Path) -> Path | None:
    """The model file that `source` is or holds; None for what can only be the name of a backbone."""
    if source.is_dir():
        if not (source / "model.keras").exists():
            raise _no_model(source)
        return source / "model.keras"
    if source.suffix == ".keras" or source.is_file():
        if not source.is_file():
            raise WeightsError(f"{source}: no such file.", hint="Give a run directory or a .keras file.")
        return source
    if source.parent != Path("."):
        near = [str(entry) for entry in source.parent.iterdir()] if source.parent.is_dir() else []
        raise WeightsError(
            f"{source}: no such run or model.{did_you_mean(str(source), near)}",
            hint="Give a run directory, a .keras file, or the name of a backbone (finetune backbones).",
        )
    return None


def _no_model(folder: Path) -> WeightsError:
    if (folder / "export.json").exists():
        return WeightsError(
            f"{folder}: an export for other programs; finetune opens only those in the format keras.",
            hint="Give the run that it was made from. README.md in it shows how it is used.",
        )
    return WeightsError(
        f"{folder}: this directory holds no model.keras.",
        hint=f"An unfinished run is continued with: {shell_command('finetune', 'train', '--resume', folder)}",
    )


def _read_archive(path: Path) -> tuple[ClassifierSpec, bytes]:
    """The spec and the weights, an HDF5 file."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(path, archive.infolist())
            return _parse_spec(path, archive.read(SPEC_MEMBER)), archive.read("model.weights.h5")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise WeightsError(_damaged(path, error)) from None


def _open(path: Path, *, name: str) -> Classifier:
    spec, content = _read_archive(path)
    try:
        classifier = build_network(spec, name=name, available=len(content) // 4)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error.message}") from None
    _load_weights(classifier, content, path)
    return classifier


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuses, by the archive's list of contents alone, what `save` never writes."""
    names = [member.filename for member in members]
    if SPEC_MEMBER not in names or "model.weights.h5" not in names:
        raise WeightsError(
            f"{path}: not a model of finetune (a .keras file without {SPEC_MEMBER}).",
            hint="Files that other programs saved may hold code and are not opened.",
        )
    strange = [printable(name)[:80] for name in names if name not in MEMBERS or names.count(name) > 1]
    if len(names) > len(MEMBERS) or strange:
        raise WeightsError(f"{path}: not a model of finetune (it also holds {', '.join(strange[:5])}).")
    size = path.stat().st_size
    spec_size = next(member.file_size for member in members if member.filename == SPEC_MEMBER)
    if spec_size > MAX_SPEC or sum(member.file_size for member in members) > MAX_EXPANSION * size + MAX_SPEC:
        raise WeightsError(f"{path}: promises more than a file of {size:,} bytes can hold.")


def _damaged(path: Path, error: Exception) -> str:
    with open(path, "rb") as file:
        start = file.read(8)
    return f"{path}: damaged, or not a model of finetune ({path.stat().st_size} bytes, starts with {start!r}; {error})."


def _parse_spec(path: Path, text: bytes) -> ClassifierSpec:
    """Check every value before anything is built from it."""
    try:
        spec = ClassifierSpec.from_json(text)
    except ValidationError as problems:
        problem = problems.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        reason = printable(f"{where}: {problem['msg']}" if where else problem["msg"])[:200]
        if problem["type"] in UNREADABLE:
            raise WeightsError(f"{path}: its {SPEC_MEMBER} cannot be read ({reason}).") from None
        raise WeightsError(f"{path}: its {SPEC_MEMBER} holds values outside their range ({reason}).") from None
    except ConfigError as error:
        raise WeightsError(f"{path}: {printable(error.message)[:200]}") from None
    if spec.format > FORMAT:
        raise WeightsError(f"{path}: written by a newer finetune (format {spec.format}).", hint="Upgrade finetune.")
    return spec


def _load_weights(classifier: Classifier, content: bytes, path: Path) -> None:
    shapes = shape_counts(tuple(w.shape) for w in classifier.model.weights)
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        plain = Path(folder) / "model.weights.h5"
        plain.write_bytes(content)
        try:
            check_h5(plain, shapes)
        except WeightsError as error:
            raise WeightsError(error.message.replace(str(plain), f"{path}: model.weights.h5")) from None
        # Keras might pass over a weight in silence: it must not keep the value that it was built with.
        for weight in classifier.model.weights:
            weight.assign(np.full(weight.shape, np.nan, weight.dtype))
        try:
            classifier.model.load_weights(plain)
        except Exception as error:  # whatever Keras makes of a file that it did not write
            reason = printable(str(error))[:200]
            raise WeightsError(f"{path}: its weights do not fit {classifier.spec.backbone}: {reason}") from None
    if missed := [weight.path for weight in classifier.model.weights if not np.isfinite(weight.numpy()).all()]:
        raise WeightsError(f"{path}: its weights do not fit {classifier.spec.backbone}: nothing for {missed[0]}")
