"""Train on a folder of class folders from Python: `python examples/train.py photos/ [key=value ...]`."""

import sys

import finetune


def main(folder: str, *overrides: str) -> None:
    result = finetune.train({"data": {"folder": folder}, "name": "example"}, *overrides)
    print(f"{result.run.path}")
    if result.metrics:
        accuracy = result.metrics.accuracy
        print(f"test accuracy {accuracy.value:.1%}, 95 % interval {accuracy.low:.1%} to {accuracy.high:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
