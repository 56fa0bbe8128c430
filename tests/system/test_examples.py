"""The examples run as they stand, from a folder of images to a model in plain Keras."""

import http.client
import importlib.util
import json
import re
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = ("model.backbone=tiny", "model.weights=none", "head.epochs=1", "head.batch_size=8")


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_every_example_is_tried_here():
    tried = set(re.findall(r'example\("(\w+)"\)', Path(__file__).read_text()))
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tried


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras saving
def test_train_then_predict_then_plain_keras(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example("train")(str(images), *TINY)
    path, accuracy = capsys.readouterr().out.splitlines()
    assert path == str(tmp_path / "runs" / "example-1")
    assert re.fullmatch(r"test accuracy [\d.]+%, 95 % interval [\d.]+% to [\d.]+%", accuracy)

    image = str(images / "red" / "00.png")
    example("predict")(image, path)
    said = capsys.readouterr().out
    assert said.startswith(f"{image}: ")
    assert sorted(re.findall("blue|green|red", said.removeprefix(image))) == ["blue", "green", "red"]

    example("plain_keras")(path, image)
    assert capsys.readouterr().out.strip() in {"blue", "green", "red"}


@contextmanager
def serving(app):
    """`ask(body) -> (status, JSON)` of the application, behind a real server on the loopback address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    def ask(body, length=None):
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.putrequest("POST", "/predict")
            connection.putheader("Content-Length", str(len(body) if length is None else length))
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    try:
        yield ask
    finally:
        server.should_exit = True
        thread.join()


def test_the_server_answers_images_and_refuses_what_is_none(images, tmp_path):
    pytest.importorskip("fastapi", reason="needs fastapi and uvicorn: pip install 'finetune[serve]'")
    pytest.importorskip("uvicorn", reason="needs fastapi and uvicorn: pip install 'finetune[serve]'")
    from finetune import config
    from finetune.models import build_classifier

    made = build_classifier(config.ModelConfig(backbone="tiny", weights="none"), ["blue", "red"])
    made.save(tmp_path / "model.keras")
    create = example("serve_fastapi").__globals__["create"]
    with serving(create(str(tmp_path))) as ask:
        status, answer = ask((images / "red" / "00.png").read_bytes())
        expected = made.predict(images / "red" / "00.png")[0].to_json()["predictions"]
        assert status == 200
        assert [one["class"] for one in answer["predictions"]] == [one["class"] for one in expected]
        assert answer["predictions"][0]["probability"] == pytest.approx(expected[0]["probability"], abs=1e-5)
        assert ask(b"")[0] == 400
        assert ask(b"no image") == (422, {"detail": "text, not an image (starts with 'no image')"})
        assert ask(None, length=20_000_001)[0] == 413
