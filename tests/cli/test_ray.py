"""Answers from a real Ray cluster on this machine: the same as without, whatever happens to its workers."""

import csv
import os
import signal

import pytest

pytest.importorskip("ray")
pytest.importorskip("pyarrow")
from finetune.cli import ray as cluster, showing
from finetune.utils.errors import PartlyDone, ResourceError

pytestmark = [
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
    from finetune.models import classifier

    made = classifier.build_classifier(ModelConfig(backbone="tiny", weights="none"), ("blue", "green", "red"))
    folder = tmp_path_factory.mktemp("model")
    made.save(folder / "model.keras")
    return str(folder / "model.keras")


@pytest.fixture
def paths(images, tmp_path):
    found = [str(path) for path in sorted(images.rglob("*.png"))]
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff and nothing more")
    return [*found[:40], str(tmp_path / "bad.jpg"), *found[40:], str(tmp_path / "gone.png")]


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.reader(stream))


def test_rows_are_those_of_plain_predict_and_resume_joins_them(ray, model, paths, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "BLOCK", 32)
    for engine in ("local", "ray"):
        with pytest.raises(PartlyDone, match="72 of 74 images answered"):
            showing.show_predictions(paths, model=model, top=2, csv_file=tmp_path / f"{engine}.csv", engine=engine)
    plain = rows(tmp_path / "local.csv")
    assert rows(tmp_path / "ray.csv") == plain
    assert len(plain) == 75

    content = (tmp_path / "ray.csv").read_bytes().splitlines(keepends=True)
    (tmp_path / "resumed.csv.part").write_bytes(b"".join(content[:33]) + content[33][:9])
    with pytest.raises(PartlyDone):
        showing.show_predictions(
            paths, model=model, top=2, csv_file=tmp_path / "resumed.csv", engine="ray", resume=True
        )
    assert rows(tmp_path / "resumed.csv") == plain


def test_a_worker_that_is_killed_is_survived(ray, model, paths, monkeypatch):
    monkeypatch.setattr(cluster, "BLOCK", 32)
    many = paths[:40] * 4
    asked = cluster.RayRequest(model, top=2)
    plain = list(showing.joint_predictions(showing.load_classifiers(model, False), many, 2, False, 0.0, 32))
    found, killed = [], []
    for answer in cluster.ray_predictions(many, asked):
        found.append(answer)
        if len(found) == 15:
            killed += kill_a_worker()
    assert killed
    assert [one.to_json() for one in found] == [one.to_json() for one in plain]


def kill_a_worker():
    import psutil

    every = [one for one in psutil.Process().children(recursive=True) if "MapWorker" in " ".join(one.cmdline())]
    for one in every:
        one.send_signal(signal.SIGKILL)
    return every


def test_a_model_that_the_workers_cannot_find_is_told(ray, model, paths, tmp_path):
    with pytest.raises(ResourceError, match="Ray"):
        list(cluster.ray_predictions(paths[:3], cluster.RayRequest(str(tmp_path / "nowhere.keras"))))


def test_no_images_need_no_cluster():
    assert list(cluster.ray_predictions([], cluster.RayRequest("absent"))) == []
