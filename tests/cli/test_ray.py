"""Answers from a real Ray cluster on this machine: the same as without, whatever happens to its workers."""

import csv
import os
import signal

import pytest

pytest.importorskip("ray")
pytest.importorskip("pyarrow")
from finetune.cli import ray as cluster
from finetune.models import PredictionRequest, load_classifiers, predict_jointly
from finetune.utils import ResourceError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


@pytest.fixture(scope="module")
def ray():
    """A cluster of one machine for all tests here."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def model(images, tmp_path_factory):
    """A classifier of three colours."""
    from finetune.config import ModelConfig
    from finetune.models import build_classifier

    made = build_classifier(ModelConfig(backbone="tiny", weights="none"), ("blue", "green", "red"))
    folder = tmp_path_factory.mktemp("model")
    made.save(folder / "model.keras")
    return str(folder / "model.keras")


@pytest.fixture
def paths(images, tmp_path):
    found = [str(path) for path in sorted(images.rglob("*.png"))]
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff and nothing more")
    (tmp_path / "none.png").write_bytes(b"")
    return [*found[:40], str(tmp_path / "bad.jpg"), *found[40:], str(tmp_path / "none.png")]


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.reader(stream))


def test_rows_are_those_of_plain_predict_and_resume_joins_them(ray, typed, model, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "BLOCK", 32)
    for engine in ("local", "ray"):
        words = ["--model", model, "--top", 2, "--csv", tmp_path / f"{engine}.csv", "--engine", engine]
        code, _, err = typed("predict", *paths, *words)
        assert code == 6
        assert "72 of 74 images were predicted" in err
    plain = rows(tmp_path / "local.csv")
    assert rows(tmp_path / "ray.csv") == plain
    assert len(plain) == 75

    content = (tmp_path / "ray.csv").read_bytes().splitlines(keepends=True)
    (tmp_path / "resumed.csv.part").write_bytes(b"".join(content[:33]) + content[33][:9])
    words = ["--model", model, "--top", 2, "--csv", tmp_path / "resumed.csv", "--engine", "ray", "--resume"]
    assert typed("predict", *paths, *words)[0] == 6
    assert rows(tmp_path / "resumed.csv") == plain


def test_a_worker_that_is_killed_is_survived(ray, model, paths, monkeypatch):
    monkeypatch.setattr(cluster, "BLOCK", 32)
    many = paths[:40] * 4
    request = PredictionRequest(model, top=2)
    plain = list(predict_jointly(load_classifiers(model, imagenet=False), many, request))
    predictions, killed = [], []
    for prediction in cluster.ray_predictions(many, request):
        predictions.append(prediction)
        if len(predictions) == 15:
            killed += kill_a_worker()
    assert killed
    assert [prediction.to_json() for prediction in predictions] == [prediction.to_json() for prediction in plain]


def kill_a_worker():
    import psutil

    every = [one for one in psutil.Process().children(recursive=True) if "MapWorker" in " ".join(one.cmdline())]
    for one in every:
        one.send_signal(signal.SIGKILL)
    return every


def test_a_model_that_the_workers_cannot_find_is_reported(ray, model, paths, tmp_path):
    with pytest.raises(ResourceError, match="Ray"):
        list(cluster.ray_predictions(paths[:3], PredictionRequest(str(tmp_path / "nowhere.keras"))))


def test_no_images_need_no_cluster():
    assert list(cluster.ray_predictions([], PredictionRequest("absent"))) == []
