"""Load on `finetune serve`: `python benchmarks/serve_load.py runs/flowers-1 photos/ [REQUESTS] [CONCURRENCY]`.

Starts it on the loopback address, sends it images, and prints requests per second, the
latencies that half and 99 % of the requests stay below, and the server's memory as it goes. Then it sends what is no
image, and expects 4xx. Client and server share the machine. Needs `pip install 'finetune[serve]'`, and Linux.
"""

import http.client
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from finetune import models as prediction

PORT = 8765
BAD = {
    "no image": (b"hello", 422),
    "nothing": (b"", 400),
    "half a JPEG": (b"\xff\xd8\xff\xe0" + bytes(100), 422),
}


def ask(content: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    try:
        connection.request("POST", "/predict", content)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def announce(size: int) -> int:
    """The status for a body of `size` bytes that is announced and not sent."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    try:
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


def timed(content: bytes) -> tuple[int, float]:
    began = time.perf_counter()
    return ask(content), time.perf_counter() - began


def memory_mb(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024


def wait_until_ready(server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
            connection.request("GET", "/health")
            connection.getresponse().read()
            return
        except OSError:
            time.sleep(0.2)
    sys.exit("the server ended")


def main(model: str, images: str, requests: str = "1000", concurrency: str = "16") -> None:
    paths = prediction.find_inputs([images])
    contents = [Path(path).read_bytes() for path in paths[:: max(1, len(paths) // 200)]]
    server = subprocess.Popen([sys.executable, "-m", "finetune.cli", "serve", model, "--port", str(PORT)])
    try:
        wait_until_ready(server)
        count, at_once = int(requests), int(concurrency)
        memory, results = [memory_mb(server.pid)], []
        began = time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            for start in range(0, count, max(1, count // 5)):
                numbers = range(start, min(count, start + max(1, count // 5)))
                results += pool.map(timed, [contents[number % len(contents)] for number in numbers])
                memory.append(memory_mb(server.pid))
        seconds = time.perf_counter() - began
        latency = np.array([taken for _, taken in results]) * 1000
        failed = sum(status != 200 for status, _ in results)
        print(f"{count} requests, {at_once} at once: {count / seconds:.1f} a second, {failed} failed")
        print(f"p50 {np.percentile(latency, 50):.0f} ms, p99 {np.percentile(latency, 99):.0f} ms")
        print(f"memory of the server, MB: {' '.join(map(str, memory))}")
        for what, (content, expected) in BAD.items():
            print(f"{what}: {ask(content)} (expected {expected})")
        print(f"26 MB: {announce(26_000_000)} (expected 413)")
    finally:
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    main(*sys.argv[1:])
