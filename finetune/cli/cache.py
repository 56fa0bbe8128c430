"""`finetune cache`: list what is kept between runs, or delete it."""

import argparse

from finetune.utils import CACHE_KINDS, Terminal, cache_sizes, clear_cache, format_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune cache clear"
    parser.add_argument("action", nargs="?", choices=("list", "clear"), default="list", help="default: %(default)s")
    kinds = ("features", "datasets", "weights", "scan")
    parser.add_argument("kind", nargs="?", choices=kinds, help="what to clear (default: features)")


def run(arguments: argparse.Namespace) -> None:
    if arguments.action == "clear":
        freed = clear_cache(arguments.kind or "features")
        Terminal(quiet=arguments.quiet).say(f"Freed {format_bytes(freed)}")
        return
    for kind, (count, size) in cache_sizes().items():
        print(f"{kind:<10} {count:>8,} files {format_bytes(size):>12}   {CACHE_KINDS[kind]}")
