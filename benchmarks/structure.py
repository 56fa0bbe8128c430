"""The structure of the package in figures: lines, functions, helpers called once, what training reaches, private words.

python benchmarks/structure.py                 the package beside this script
python benchmarks/structure.py ../other/tree   another checkout, to compare
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from statistics import median

# Of the first version; the field's words stand in their place.
WORDS = [
    "picture",
    "found",
    "remedy",
    "share",
    "said",
    "slopes",
    "chief",
    "anew",
    "mend",
    "rehearsal",
    "tryout",
    "watcher",
    "likeness",
    "alike",
    "honest",
    "complaint",
    "catalogue",
]
REACH = """
import sys, {module}
loaded = [module for name, module in sys.modules.items() if name.split(".")[0] == "finetune" and module.__file__]
print(len(loaded), sum(len(open(module.__file__).read().splitlines()) for module in loaded))
"""


def functions(text: str) -> list[tuple[str, int]]:
    """(name, lines) of every function and method."""
    nodes = ast.walk(ast.parse(text))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(node.name, (node.end_lineno or 0) - node.lineno + 1) for node in nodes if isinstance(node, kinds)]


def report(name: str, texts: list[str], uses: Counter[str]) -> None:
    """One line about some files; `uses` counts every private name in the package, its definition included."""
    every = [entry for text in texts for entry in functions(text)]
    sizes = sorted(size for _, size in every)
    once = [name for name, _ in every if name.startswith("_") and not name.startswith("__") and uses[name] == 2]
    lines = sum(text.count("\n") for text in texts)
    small, large = sum(size <= 4 for size in sizes) / len(sizes), sum(size > 60 for size in sizes)
    print(f"{name:<11} {len(texts):>4} files {lines:>7,} lines {len(every):>5} functions:", end=" ")
    print(f"median {median(sizes):.0f}, p90 {sizes[int(0.9 * len(sizes))]}, above 60 lines {large}", end=", ")
    print(f"4 or fewer {small:.0%}, private and called once {len(once) / len(every):.0%}")


def main(tree: Path) -> None:
    package = tree / "finetune"
    texts = {path: path.read_text("utf-8") for path in sorted(package.rglob("*.py"))}
    whole = "\n".join(texts.values())
    uses = Counter(re.findall(r"\b_[a-z]\w*", whole))
    rooms = sorted({path.relative_to(package).parts[0] for path in texts if path.parent != package})
    for room in rooms:
        report(room, [text for path, text in texts.items() if path.is_relative_to(package / room)], uses)
    report("all", list(texts.values()), uses)
    longest = sorted(((text.count("\n"), path) for path, text in texts.items()), reverse=True)[:3]
    print("longest files:", ", ".join(f"{path.relative_to(package)} {size}" for size, path in longest))
    print(
        "names at the top level:",
        len(rooms) + sum(path.parent == package and path.stem != "__init__" for path in texts),
    )
    # Not in quotation marks: keys of the config, of JSON files and of TF_CONFIG keep their names.
    counts = {word: len(re.findall(rf"""\b(?<!['"]){word}s?(?!['"])\b""", whole, re.IGNORECASE)) for word in WORDS}
    print("words:", ", ".join(f"{word} {count}" for word, count in counts.items() if count) or "none")
    module = "finetune.training.loop" if (package / "training").is_dir() else "finetune.training"
    code = REACH.format(module=module)
    reached = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=True)
    print("importing {} reaches {} modules, {} lines".format(module, *reached.stdout.split()))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve())
