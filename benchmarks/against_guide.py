"""finetune against `keras_guide.py`, turn about on the same images, backbone, size, epochs and batch.

    KERAS_HOME=... python benchmarks/against_guide.py IMAGES [--backbone mobilenet_v2] [--rounds 1]

Prints, per round and as medians, how many times faster: the head phase the first time (reading included) and with a
warm cache, the fine-tune phase, and the whole run from reading to report; and both test accuracies.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FIRST_BLOCK = {"mobilenet_v2": "block_11_expand", "efficientnet_lite0": "block5c_expand_conv"}  # as in keras_guide.py


def ours(arguments: argparse.Namespace, folder: Path, fine_epochs: int) -> dict:
    """One `finetune train` in a process of its own; its seconds by stage, `wall` included, and its accuracies."""
    config = {
        "name": "bench",
        "recipe": "none",
        "output": str(folder / "runs"),
        "data": {"folder": str(Path(arguments.images).resolve())},
        "model": {"backbone": arguments.backbone},
        "head": {"epochs": arguments.head_epochs},
        "fine_tune": {
            "unfreeze": FIRST_BLOCK[arguments.backbone],
            "epochs": fine_epochs,
            "learning_rate": arguments.rate,
            "schedule": "constant",
        },
    }
    path = folder / "bench.json"
    path.write_text(json.dumps(config))  # JSON is YAML
    environment = {**os.environ, "FINETUNE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "finetune.cli", "train", str(path), "--quiet"]
    subprocess.run(command, check=True, env=environment)
    run = max((folder / "runs").iterdir(), key=lambda entry: int(entry.name.split("-")[-1]))
    report = json.loads((run / "report.json").read_text())
    report["run"] = run
    return report


def guide(arguments: argparse.Namespace, splits: Path) -> dict:
    command = [sys.executable, str(HERE / "keras_guide.py"), str(splits), "--backbone", arguments.backbone]
    command += ["--head-epochs", str(arguments.head_epochs), "--fine-epochs", str(arguments.fine_epochs)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures")
    parser.add_argument("--backbone", default="mobilenet_v2", choices=FIRST_BLOCK)
    parser.add_argument("--head-epochs", type=int, default=10)
    parser.add_argument("--fine-epochs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=1e-5, help="fine-tuning rate of ours; the guide's is 1e-5")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    ratios: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            first = ours(arguments, folder, arguments.fine_epochs)
            warm = ours(arguments, folder, 0)
            splits = folder / "splits"
            command = [
                sys.executable,
                str(HERE / "split_folder.py"),
                str(first["run"]),
                arguments.images,
                str(splits),
            ]
            subprocess.run(command, check=True)
            peer = guide(arguments, splits)
        cold, hot = first["seconds"], warm["seconds"]
        for title, seconds, theirs in (
            ("head phase, first time", cold["reading"] + cold["features"] + cold["head"], peer["head"]),
            ("head phase, warm cache", hot["features"] + hot["head"], peer["head"]),
            ("fine-tune phase", cold["fine_tune"], peer["fine"]),
            ("whole run", sum(cold.values()), peer["whole"]),
        ):
            ratios.setdefault(title, []).append(theirs / seconds)
            print(
                f"{title:<24} ours {seconds:7.1f} s   guide {theirs:7.1f} s   {theirs / seconds:5.1f} times", flush=True
            )
        accuracy, head = first["test"]["accuracy"]["value"], first["head"]["accuracy"]["value"]
        print(f"test accuracy: head {head:.3f} against {peer['head_test_accuracy']:.3f}, "
              f"fine-tuned {accuracy:.3f} against {peer['test_accuracy']:.3f}", flush=True)  # fmt: skip
    print({title: round(statistics.median(found), 1) for title, found in ratios.items()})


if __name__ == "__main__":
    main()
