"""Top-1 and top-5 of the untouched 1000-class networks on images named by WordNet id (n01440764_tench.JPEG).

KERAS_HOME=... python benchmarks/imagenet_samples.py FOLDER [BACKBONE ...]
"""

import sys
from pathlib import Path

import numpy as np

from finetune import data
from finetune.evaluation import metrics as evaluation
from finetune.models import load_classifier


def main(folder: str, *names: str) -> None:
    paths = data.find_images(Path(folder))[0]
    for name in names or ("efficientnet_lite0",):
        classifier = load_classifier(name)
        labels = np.array([classifier.ids.index(path.name.split("_")[0]) for path in paths])
        answers = np.concatenate([rows for _, rows, _ in classifier.probabilities(paths)])
        found = evaluation.multiclass_metrics(answers, labels, classifier.classes)
        top5 = found.top5.value if found.top5 else 1.0
        print(f"{name:<20} top-1 {found.accuracy.value:.1%}  top-5 {top5:.1%}  n = {found.n}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
