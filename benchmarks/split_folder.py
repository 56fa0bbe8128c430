"""Makes train/, validation/ and test/ folders of links from a run's splits.csv: `split_folder.py RUN IMAGES TARGET`.

So that a peer which reads folders sees exactly the images that the run saw.
"""

import csv
import sys
from pathlib import Path


def main() -> None:
    run, images, target = map(Path, sys.argv[1:4])
    with open(run / "splits.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        for row in csv.DictReader(file):
            link = target / row["split"] / row["label"] / Path(row["path"]).name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((images / row["path"]).resolve())


if __name__ == "__main__":
    main()
