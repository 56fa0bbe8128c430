"""How the recipe does with few images: test accuracy by their number, before and after other settings.

    python benchmarks/small_data.py [--sets digits] [--n 60 120 300 1000] [--seeds 0 1 2]
    python benchmarks/small_data.py --sets patches photos --photos FLOWERS --variant "old: fine_tune.ema=0.99"

    digits    scikit-learn's digits of 8 x 8 pixels
    patches   the middle 64 x 64 pixels of each photo of FLOWERS, a folder of photos with a subfolder per class
    photos    the photos themselves, seen at `--photo-size` pixels

Of each set n images train, an eighth of n more validate (as with the usual 80/10/10; `--validation` says otherwise, to
see what the settings do where validation can tell), and `--test` others test: a draw of its own for each seed, with the
classes in their proportions. A variant is a name and the overrides of what `recipe:
auto` chooses; without overrides it is the recipe. All variants share images, features and first weights. `regression`
is the head before any step. For each variant the mean and the range over the seeds are given of two accuracies: at the
end of training, and of what is kept: the best epoch on the validation images, or the regression where no epoch was
better than that by more than noise (`undone` says how often).
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import recipes
from sklearn.model_selection import train_test_split

from finetune.config import Config, fill_open_keys, load_config
from finetune.data import data_facts, open_dataset
from finetune.training.callbacks import Callback
from finetune.training.model_state import averaged_weights
from finetune.training.trial_cache import TrialTrainer
from finetune.utils import keras, tf


class TestAccuracy(Callback):
    """The accuracy on the test images before training, after its last epoch, and of what is kept."""

    def on_phase_begin(self) -> None:
        if self.trainer.phase.index == 0:
            self.first = self.end = self.measure()

    def on_epoch_end(self, epoch: int, logs: object) -> None:
        trainer = self.trainer
        if trainer.selection.finished:
            with averaged_weights(trainer.optimizer, trainer.above.trainable_variables):
                self.end = self.measure()

    def on_phase_end(self, result: object) -> None:
        self.kept = self.measure()

    def measure(self) -> float:
        dataset = self.trainer.dataset
        test = dataset.indices("test")
        return float((self.trainer.logits(test).argmax(axis=1) == dataset.labels[test]).mean())


def draw_images(source: Path, target: Path, n: int, validation: int, test: int, seed: int) -> None:
    """Links to some images of `source`, as train/, validation/ and test/, in `target`."""
    paths = sorted(path for path in source.glob("*/*") if path.is_file())
    classes = [path.parent.name for path in paths]
    validation = max(validation, len(set(classes)))
    _, drawn = train_test_split(paths, test_size=n + validation + test, stratify=classes, random_state=seed)
    for split, count in (("test", test), ("validation", validation), ("train", n)):
        if count < len(drawn):
            labels = [path.parent.name for path in drawn]
            drawn, part = train_test_split(drawn, test_size=count, stratify=labels, random_state=seed)
        else:
            part = drawn
        for path in part:
            recipes.link(path, target / split / path.parent.name / path.name)


def measure(images: Path, seed: int, variants: dict[str, list[str]], more: list[str]) -> list[dict[str, object]]:
    """For each variant the test accuracies, and whether its fine-tuning was undone."""
    dataset = open_dataset(load_config({"data": {"folder": str(images)}}).data, seed=seed)
    trials, rows = TrialTrainer(dataset), []
    for name, overrides in variants.items():
        started, accuracy = time.monotonic(), TestAccuracy()
        results = trials.fit(filled(dataset, images, seed, [*more, *overrides]), callbacks=[accuracy])
        undone = results[-1].best_epoch == 0
        rows.append({"variant": name, "first": accuracy.first, "end": accuracy.end, "kept": accuracy.kept})
        rows[-1]["undone"] = undone
        print(
            f"    {images.name} {name}: {accuracy.first:.4f} -> {accuracy.end:.4f}, kept {accuracy.kept:.4f}"
            f"{' (undone)' * undone}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
    return rows


def filled(dataset: object, images: Path, seed: int, overrides: list[str]) -> Config:
    given = {"data": {"folder": str(images)}, "seed": seed, "cache": "memory", "device": "cpu"}
    return fill_open_keys(load_config(given, overrides), data_facts(dataset, "cpu"))[0]


def show_rows(name: str, n: int, rows: list[dict[str, object]]) -> None:
    """A line of a table for each variant."""

    def over_seeds(rows: list[dict[str, object]], key: str) -> str:
        values = [100 * float(row[key]) for row in rows]
        return f"{statistics.mean(values):.1f} % ({min(values):.1f} to {max(values):.1f})"

    for variant in dict.fromkeys(row["variant"] for row in rows):
        of_variant = [row for row in rows if row["variant"] == variant]
        accuracies = " | ".join(over_seeds(of_variant, key) for key in ("first", "end", "kept"))
        print(
            f"| {name} | {n} | {variant} | {accuracies} | {sum(bool(row['undone']) for row in of_variant)} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="FLOWERS, for patches and photos")
    parser.add_argument("--sets", nargs="+", choices=("digits", "patches", "photos"), default=["digits"])
    parser.add_argument("--n", type=int, nargs="+", default=[60, 120, 300, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--validation", type=int, help="images that choose the epoch; default: an eighth of n")
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--photo-size", type=int, default=96)
    parser.add_argument("--variant", action="append", default=[], help='"name: key=value ..."')
    arguments = parser.parse_args()
    variants = {}
    for variant in arguments.variant or ["recipe"]:
        name, _, overrides = variant.partition(":")
        variants[name] = overrides.split()
    arguments.flowers = arguments.photos and arguments.photos.resolve()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, "
          f"TensorFlow {tf.__version__}, Keras {keras.__version__}, numpy {np.__version__}")  # fmt: skip
    print("| set | n | variant | regression | at the end | kept | undone |\n|---|---|---|---|---|---|---|", flush=True)
    for name in arguments.sets:
        more = [f"model.image_size={arguments.photo_size}"] if name == "photos" else []
        with tempfile.TemporaryDirectory() as folder:
            source = arguments.flowers if name == "photos" else Path(folder, name)
            if name != "photos":
                recipes.MAKERS[name](source, arguments)
            for n in arguments.n:
                rows = []
                for seed in arguments.seeds:
                    images = Path(folder, f"{name}-{n}-{seed}")
                    draw_images(source, images, n, arguments.validation or n // 8, arguments.test, seed)
                    rows += measure(images, seed, variants, more)
                show_rows(name, n, rows)


if __name__ == "__main__":
    main()
