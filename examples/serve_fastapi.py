"""A classifier behind HTTP: `python examples/serve_fastapi.py runs/flowers-1`, then

    curl --data-binary @rose.jpg http://127.0.0.1:8000/predict

The response is JSON. A file that is no usable image gets status 422 and the reason, a file that is too large 413.
Needs `pip install fastapi uvicorn`. Behind a proxy that ends TLS and limits rates this can face the world.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request

import finetune
from finetune import data
from finetune.utils import ImageError

MAX_BYTES = 20_000_000
TOP = 5


def create(source: str) -> FastAPI:
    """The application for a run or a backbone."""
    classifier = finetune.load(source)
    size = classifier.spec.image_size
    # this builds the graph, so that the first request does not have to wait
    classifier.forward(np.zeros((1, size, size, 3), np.float32))
    decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")  # Pillow releases the GIL
    network = ThreadPoolExecutor(1, thread_name_prefix="network")  # TensorFlow uses every core for one image
    app = FastAPI(title=f"finetune: {classifier.name}")

    def predict_top(pixels: np.ndarray) -> list[dict[str, object]]:
        probabilities = np.asarray(classifier.forward(pixels[None].astype(np.float32)))[0]
        best = np.argsort(-probabilities, kind="stable")[:TOP]
        return [{"class": classifier.classes[at], "probability": round(float(probabilities[at]), 6)} for at in best]

    @app.get("/health")
    async def health() -> dict[str, object]:
        return {"model": classifier.name, "classes": len(classifier.classes)}

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, object]:
        content = await read(request)
        loop = asyncio.get_running_loop()
        try:
            pixels = await loop.run_in_executor(decoders, data.decode_square, content, classifier.transform)
        except ImageError as problem:
            raise HTTPException(422, problem.message) from None
        return {"predictions": await loop.run_in_executor(network, predict_top, pixels)}

    return app


async def read(request: Request) -> bytes:
    """The body of the request; 413 as soon as it is known to be too large, 400 where there is none."""
    content = bytearray()
    too_large = HTTPException(413, f"more than {MAX_BYTES:,} bytes")
    if int(request.headers.get("content-length", 0)) > MAX_BYTES:
        raise too_large
    async for part in request.stream():
        content += part
        if len(content) > MAX_BYTES:
            raise too_large
    if not content:
        raise HTTPException(400, "send the bytes of an image: curl --data-binary @image.jpg")
    return bytes(content)


def main(source: str = "efficientnet_lite0", port: str = "8000") -> None:
    uvicorn.run(create(source), host="127.0.0.1", port=int(port), log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
