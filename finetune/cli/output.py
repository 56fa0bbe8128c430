"""How commands print: tables, JSON, figures, and images that could not be read. Standard output is for results only."""

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.measure import Measurement
from rich.table import Table

from finetune.utils import DataError, PartlyDone, printable, result_console

if TYPE_CHECKING:
    from finetune.models import Prediction

LISTED_PROBLEMS = 20
FIGURE_IMAGES = 12  # more on one sheet could not be read


def print_table(table: Table) -> None:
    """Print `table`, as wide as it is in a file or pipe; only a terminal has an edge to keep to."""
    console = result_console()
    if not console.is_terminal:
        unlimited = console.options.update(max_width=10_000)
        console.width = Measurement.get(console, unlimited, table).maximum
    console.print(table)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def raise_for_unreadable(problems: "Sequence[Prediction]", count: int) -> None:
    """Raise DataError if none of `count` images could be read, PartlyDone if some could not; `problems` says why."""
    if not problems:
        return
    lines = [f"\n  {printable(problem.path)}: {problem.error}" for problem in problems[:LISTED_PROBLEMS]]
    if len(problems) > LISTED_PROBLEMS:
        lines.append(f"\n  ... and {len(problems) - LISTED_PROBLEMS} more")
    if len(problems) == count:
        raise DataError(f"none of the {count} images could be read:{''.join(lines)}")
    read = count - len(problems)
    raise PartlyDone(f"{read} of {count} images were predicted; these could not be read:{''.join(lines)}")


def stack_figures(pngs: Sequence[bytes]) -> bytes:
    """Several PNG figures as one PNG, one below the other. DataError if there are none."""
    from PIL import Image

    if not pngs:
        raise DataError("there is no readable image to draw.")
    images = [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]
    width, height = max(image.width for image in images), sum(image.height for image in images)
    sheet = Image.new("RGB", (width, height), "white")
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    target = io.BytesIO()
    sheet.save(target, "PNG")
    return target.getvalue()
