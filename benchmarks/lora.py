"""Does LoRA pay? The recipe's fine-tune phase as it is, and with Keras' own LoRA on the same layers, turn about.

    python benchmarks/lora.py IMAGES [--ranks 4 16] [--rates 3e-4 3e-3] [--seeds 0 1 2]

IMAGES is a folder with a subfolder per class. LoRA (Hu et al. 2021): the unfrozen kernels stay, and the product of
two thin matrices is learned for each (`keras.layers.Conv2D.enable_lora`; a depthwise convolution has none and stays
frozen, the new head is learned whole). Same features, same batches. Prints per arm: validation accuracy at the best
epoch (0: none beat what the phase began with), trained numbers, and processor seconds of the phases.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__)


def low_rank(rank: int) -> None:
    """From here on unfreezing a kernel means learning a product of rank `rank` beside it."""
    from finetune.training import loop

    unfreeze = loop.freeze_below

    def freeze_below(classifier: Any, cut: Any, *, batch_norm: str) -> Any:
        above = unfreeze(classifier, cut, batch_norm=batch_norm)
        head = next(layer for layer in reversed(above.layers) if hasattr(layer, "kernel"))
        if len(cut.shape) == 4:  # not the head alone
            for layer in above.layers:
                if not hasattr(layer, "enable_lora"):
                    layer.trainable = False
                elif layer is not head and not layer.lora_enabled:
                    layer.enable_lora(rank)
        return above

    loop.freeze_below = freeze_below


def measure(config: Path, rank: int) -> dict[str, Any]:
    """One arm, in this process."""
    from finetune.config import load_config
    from finetune.data import open_dataset
    from finetune.training.callbacks import Callback
    from finetune.training.trial_cache import TrialTrainer

    if rank:
        low_rank(rank)
    loaded = load_config(config)
    trained: list[int] = []

    class Clock(Callback):
        began = 0.0

        def on_phase_begin(self) -> None:
            self.began = time.process_time()
            variables = self.trainer.above.trainable_variables
            trained.append(sum(int(variable.shape.num_elements()) for variable in variables))

    clock = Clock()
    result = TrialTrainer(open_dataset(loaded.data, seed=loaded.seed)).fit(loaded, callbacks=[clock])[-1]
    return {
        **result.validation,
        "best_epoch": result.best_epoch,
        "trained": trained[-1],
        "seconds": time.process_time() - clock.began,
    }


def arm(arguments: argparse.Namespace, folder: Path, seed: int, rank: int, rate: float | None) -> dict[str, Any]:
    """One arm in a process of its own: a network that has LoRA keeps it."""
    fine = {"fine_tune": {**json.loads(arguments.fine_tune), **({"learning_rate": rate} if rate else {})}}
    config = folder / "config.yaml"
    config.write_text(json.dumps({"data": {"folder": str(arguments.images.resolve())}, "seed": seed, "recipe": "none",
                                  "model": {"image_size": arguments.size}, "head": {"epochs": 0},
                                  "augment": {"preset": "light", "views": 3}, **fine}))  # fmt: skip
    command = [sys.executable, str(HERE), "--arm", str(config), str(rank)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ,
                          "FINETUNE_CACHE": str(folder / "cache")}).stdout  # fmt: skip
    return dict(json.loads(said.splitlines()[-1]))


def main() -> None:
    if sys.argv[1:2] == ["--arm"]:
        print(json.dumps(measure(Path(sys.argv[2]), int(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 3e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--fine-tune", default='{"unfreeze": 0.4, "epochs": 8, "learning_rate": 3e-4, "warmup": 0.1, '
                        '"label_smoothing": 0.1, "ema": 0.99}')  # fmt: skip
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        arms = [(0, None), *((rank, rate) for rank in arguments.ranks for rate in arguments.rates)]
        for rank, rate in arms:
            every = [arm(arguments, Path(name), seed, rank, rate) for seed in arguments.seeds]
            mean = {key: statistics.mean(one[key] for one in every) for key in every[0]}
            title = f"LoRA rank {rank} at {rate:g}" if rank else "all of the kernels"
            print(f"{title:24} accuracy {mean['accuracy']:.4f}, loss {mean['loss']:.4f}, {mean['trained']:,.0f} "
                  f"numbers trained, {mean['seconds']:.0f} processor s, best epochs "
                  f"{[one['best_epoch'] for one in every]}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
