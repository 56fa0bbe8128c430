"""`finetune weights`: the weight files of backbones on this machine, and how to bring them to one without a network."""

import argparse

from finetune.backbones import fetch_weights, find_backbone, list_weights, verify_weights
from finetune.utils import Terminal, UsageError, cache_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune weights fetch resnet50"
    text = "list what is here (default), fetch and check files, verify what is here, or print the paths of the files"
    parser.add_argument("action", nargs="?", choices=("list", "fetch", "verify", "path"), default="list", help=text)
    parser.add_argument("name", nargs="?", metavar="BACKBONE", help="for fetch and path")


def run(arguments: argparse.Namespace) -> None:
    if arguments.action in ("fetch", "path") and arguments.name is None:
        raise UsageError("which network?", hint=f"For example: finetune weights {arguments.action} resnet50")
    if arguments.action == "fetch":
        _fetch(arguments.name, Terminal(quiet=arguments.quiet))
    elif arguments.action == "path":
        _print_paths(arguments.name)
    elif arguments.action == "verify":
        _verify()
    else:
        _print_list()


def _print_list() -> None:
    for stored in list_weights():
        if stored.path:
            print(f"{stored.backbone:<24} {stored.place:<8} {stored.path}")
    print("Others are downloaded when they are first needed, or now: finetune weights fetch NAME")


def _fetch(name: str, terminal: Terminal) -> None:
    with terminal.stage(f"Fetching {name}") as update:
        fetched = fetch_weights(name, progress=update)
    for file in fetched:
        print(file.path)


def _verify() -> None:
    for stored, problem in verify_weights():
        print(f"ok  {stored.path}" if problem is None else f"BAD {stored.path}  {problem}")


def _print_paths(name: str) -> None:
    """Where the files of one network are, or would be."""
    row = find_backbone(name)
    for stored in list_weights():
        if stored.backbone == row.name:
            print(stored.path or cache_folder() / "weights" / stored.file.name)
