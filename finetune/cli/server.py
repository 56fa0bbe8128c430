"""A classifier behind HTTP: what `finetune serve` and `finetune demo` serve.

    app = make_app(ImageService(classifier))

    POST /predict   an image as the body, as the field `file` of a form, or as JSON {"image": BASE64} -> JSON
    GET  /          a page to try it on           GET /docs     the interface, with a form to try it
    GET  /health    what is served                GET /metrics  for Prometheus

Images take the way of `finetune predict`. Status 400: no image came; 413: too large; 422: no usable image, and why.
Nothing leaves the machine, and nothing is loaded from elsewhere; an image is forgotten when it is answered.
"""

import asyncio
import base64
import binascii
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from fastapi_offline import FastAPIOffline
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest

from finetune.data import decode_image, decode_square, pad_batch
from finetune.evaluation import PHOTO_SIDE, explain_image, jpeg_uri, load_template, overlay_photo
from finetune.models import Classifier, make_prediction
from finetune.utils import ImageError, printable

MAX_BYTES = 25_000_000
BASE64_BYTES = MAX_BYTES * 4 // 3 + 1000  # of an image of that size in JSON
PAGE_CLASSES = 5
HEATMAP_SIDE = 1024
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
            },
            "application/json": {"schema": {"type": "object", "properties": {"image": {"type": "string"}}}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@dataclass
class ImageService:
    """Predictions of `classifier` for the bytes of image files.

    `imagenet`, where given, predicts 1000 classes beside it; `examples` are paths of images that the page offers.
    """

    classifier: Classifier
    imagenet: Classifier | None = None
    examples: Sequence[str] = ()
    # Pillow lets other threads run while it decodes; TensorFlow uses every core for one image.
    _decoders: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2))
    _network: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    async def predict(self, content: bytes, *, top: int, explain: bool) -> dict[str, Any]:
        """The row of `finetune predict --json` for an image file; with `explain`, what the page shows besides.

        Raises ImageError for what is no usable image.
        """
        run = asyncio.get_running_loop().run_in_executor
        square = await run(self._decoders, decode_square, content, self.classifier.transform)
        answer = await run(self._network, _predict, self.classifier, square, top)
        if explain:
            decoded = await run(self._decoders, decode_image, content, PHOTO_SIDE)
            answer["heatmap"] = await run(self._network, self._heatmap, square, np.array(decoded.rgb))
            if self.imagenet:
                seen = await run(self._decoders, decode_square, content, self.imagenet.transform)
                answer["imagenet"] = (await run(self._network, _predict, self.imagenet, seen, top))["predictions"]
        return answer

    def _heatmap(self, square: np.ndarray, photo: np.ndarray) -> str:
        explanation = explain_image(self.classifier, square)
        return jpeg_uri(overlay_photo(photo, explanation, self.classifier.transform), HEATMAP_SIDE)

    def warm_up(self) -> None:
        """Predict a black image: the first prediction builds the graphs, which takes seconds."""
        black = io.BytesIO()
        Image.new("RGB", (64, 64)).save(black, "PNG")
        asyncio.run(self.predict(black.getvalue(), top=1, explain=True))


def _predict(classifier: Classifier, square: np.ndarray, top: int) -> dict[str, Any]:
    row = np.asarray(classifier.forward(pad_batch(square[None], 1)))[0]
    answer = make_prediction(classifier, "", row, top).to_json()
    del answer["path"]  # the image has none
    return answer


def make_app(service: ImageService) -> FastAPI:
    """The application. `/docs` needs no network, unlike that of plain FastAPI."""
    app: FastAPI = FastAPIOffline(title=f"finetune: {service.classifier.name}", redoc_url=None)
    classes = service.classifier.classes
    registry = CollectorRegistry()
    requests = Counter("finetune_predictions", "Requests to /predict by status", ["status"], registry=registry)
    seconds = Histogram("finetune_prediction_seconds", "Seconds from a whole image to its answer", registry=registry)

    @app.post("/predict", openapi_extra=BODY)
    async def predict(request: Request, top: int = Query(5, ge=1), explain: bool = False) -> dict[str, Any]:
        status = 200
        try:
            content = await read_image_bytes(request)
            with seconds.time():
                return await service.predict(content, top=top, explain=explain)
        except ImageError as error:
            status = 422
            raise HTTPException(status, error.message) from None
        except HTTPException as error:
            status = error.status_code
            raise
        finally:
            requests.labels(str(status)).inc()

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> str:
        template = load_template("finetune.cli", "demo.html.j2", {"shown": printable}, autoescape=True)
        title, noun = service.classifier.row.title, service.classifier.label_type.noun
        return template.render(
            service=service, classes=classes, title=title, noun=noun, top=PAGE_CLASSES, max_bytes=MAX_BYTES
        )

    @app.get("/examples/{number}", include_in_schema=False)
    async def example(number: int) -> FileResponse:
        if not 0 <= number < len(service.examples):
            raise HTTPException(404)
        return FileResponse(service.examples[number])

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"model": service.classifier.name, "classes": len(classes)}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def read_image_bytes(request: Request) -> bytes:
    """The image file in a request, whichever way it comes. Raises HTTPException with 400, 413 or 422."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await _read_body(request, BASE64_BYTES if kind == "application/json" else MAX_BYTES)
    if kind == "multipart/form-data":

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async with Request(request.scope, receive).form() as form:
            file = form.get("file")
            body = b"" if file is None or isinstance(file, str) else await file.read()
    elif kind == "application/json":
        try:
            body = base64.b64decode(json.loads(body)["image"], validate=True)
        except (ValueError, KeyError, TypeError, binascii.Error):
            raise HTTPException(422, 'JSON must be {"image": BASE64}, the bytes of an image file in base64') from None
    if not body:
        raise HTTPException(400, "send an image: curl --data-binary @image.jpg, or curl -F file=@image.jpg")
    return body


async def _read_body(request: Request, limit: int) -> bytes:
    """413 as soon as it is known that there is too much."""
    too_large = HTTPException(413, f"more than {MAX_BYTES:,} bytes")
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limit:
            raise too_large
    return bytes(content)
