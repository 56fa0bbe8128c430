"""Test accuracy of a config over several seeds: `python benchmarks/seeds.py CONFIG [key=value ...] [--seeds 0 1 2]`."""

import argparse
import statistics

import finetune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    heads, wholes = [], []
    for seed in arguments.seeds:
        result = finetune.train(arguments.config, *arguments.overrides, f"seed={seed}", quiet=True)
        whole = result.metrics.accuracy.value
        head = result.head_metrics.accuracy.value if result.head_metrics else whole
        heads.append(head)
        wholes.append(whole)
        print(f"seed {seed}: head {head:.4f}, whole {whole:.4f}, {result.run.path.name}", flush=True)
    print(f"mean of {len(heads)}: head {statistics.mean(heads):.4f}, whole {statistics.mean(wholes):.4f}")


if __name__ == "__main__":
    main()
