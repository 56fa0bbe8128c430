"""Ask an ImageNet network what is in an image: `python examples/predict.py dog.jpg [BACKBONE or RUN]`."""

import sys

import finetune


def main(path: str, source: str = "efficientnet_lite0") -> None:
    for answer in finetune.load(source).predict(path, top=3):
        best = ", ".join(f"{one.name} {one.probability:.0%}" for one in answer.predictions)
        print(f"{answer.path}: {answer.error or best}")


if __name__ == "__main__":
    main(*sys.argv[1:])
