"""The service: images in any way in, the JSON of `finetune predict` out, 4xx with the reason for what is none."""

import base64
import io
import re
import socket

import pytest
from PIL import Image

from finetune import config
from finetune.models import build_classifier
from finetune.utils import UsageError

pytest.importorskip("fastapi_offline", reason="needs pip install 'finetune[serve]'")
from fastapi.testclient import TestClient

from finetune.cli import serve, server

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def service(images):
    settings = config.ModelConfig(backbone="tiny", weights="none", image_size=64)
    made = build_classifier(settings, ["blue", "green", HOSTILE])
    made.model.get_layer("logits").bias.assign([0.0, 1.0, 5.0])
    other = build_classifier(config.ModelConfig(backbone="tiny", weights="none"), ["cat", "dog"])
    service = server.ImageService(made, other, [str(images / "red" / "01.png")])
    service.warm_up()
    return service


@pytest.fixture(scope="module")
def client(service):
    return TestClient(server.make_app(service))


@pytest.fixture(scope="module")
def content(images):
    return (images / "red" / "00.png").read_bytes()


def test_bytes_a_form_and_json_get_what_predict_says(client, service, images, content):
    expected = service.classifier.predict(images / "red" / "00.png", top=2)[0].to_json()["predictions"]
    ways = {
        "bytes": {"content": content},
        "form": {"files": {"file": ("a.png", content)}},
        "json": {"json": {"image": base64.b64encode(content).decode()}},
    }
    for way, body in ways.items():
        response = client.post("/predict?top=2", **body)
        assert (response.status_code, response.json()) == (200, {"predictions": expected}), way


def test_the_page_gets_a_heatmap_and_the_other_networks_opinion(client, content):
    answer = client.post("/predict?explain=true", content=content).json()
    assert {one["class"] for one in answer["imagenet"]} == {"cat", "dog"}
    heatmap = base64.b64decode(answer["heatmap"].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(heatmap)).size == (40, 36)  # the image's own resolution


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"content": b""}, 400, "curl"),
        ({"files": {"other": b"x"}}, 400, "curl"),
        ({"data": {"file": "text"}}, 422, "not an image"),
        ({"content": b"no image"}, 422, "text, not an image"),
        ({"content": b"\x89PNG\r\n\x1a\n half of one"}, 422, "damaged"),
        ({"json": {"picture": "x"}}, 422, "base64"),
        ({"json": {"image": "?"}}, 422, "base64"),
        ({"json": [1]}, 422, "base64"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "base64"),
        ({"content": b"x", "headers": {"content-length": "25000001"}}, 413, "25,000,000 bytes"),
        ({"content": b"x" * 25_000_001}, 413, "25,000,000 bytes"),
    ],
)
def test_what_is_no_usable_image_is_refused_with_the_reason(client, body, status, reason):
    response = client.post("/predict", **body)
    assert response.status_code == status, response.text
    assert reason in response.json()["detail"]


def test_the_page_needs_nothing_from_elsewhere_and_believes_no_name(client):
    page = client.get("/").text
    assert not re.search(r"https?://|@import|url\(", page)
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)" in page
    assert client.get("/examples/0").headers["content-type"] == "image/png"
    assert client.get("/examples/1").status_code == 404


def test_docs_open_without_a_network_and_can_try_an_image(client):
    assert not re.search(r'(?:src|href)="https?://', client.get("/docs").text)
    body = client.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert body["multipart/form-data"]["schema"]["properties"]["file"]["format"] == "binary"


def test_health_and_metrics_for_a_cluster(service, content):
    client = TestClient(server.make_app(service))
    client.post("/predict", content=content)
    client.post("/predict", content=b"no image")
    assert client.get("/health").json() == {"model": service.classifier.name, "classes": 3}
    metrics = client.get("/metrics").text
    assert 'finetune_predictions_total{status="200"} 1.0' in metrics
    assert 'finetune_predictions_total{status="422"} 1.0' in metrics


def test_a_taken_port_is_said_with_another():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port} cannot be served on") as refused:
            serve.serve(None, host="127.0.0.1", port=port, say=print)
    assert f"--port {port + 1}" in str(refused.value)


def test_the_address_is_one_that_others_can_type():
    assert serve.typed_address("127.0.0.1") == "127.0.0.1"
    assert serve.typed_address("::1") == "[::1]"
    assert serve.typed_address("0.0.0.0") not in ("", "0.0.0.0", "127.0.0.1")
