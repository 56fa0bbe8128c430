"""`finetune weights`: the weight files of backbones on this machine, and how to bring them to one without a network."""

import argparse

from finetune.utils import Terminal, UsageError, cache_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune weights fetch resnet50"
    text = "list what is here (default), fetch and check files, verify what is here, or print the paths of the files"
    parser.add_argument("action", nargs="?", choices=("list", "fetch", "verify", "path"), default="list", help=text)
    parser.add_argument("name", nargs="?", metavar="BACKBONE", help="for fetch and path")


def run(arguments: argparse.Namespace) -> None:
    from finetune.backbones import fetch_weights, find_backbone, list_weights, verify_weights

    action, name = arguments.action, arguments.name
    if action in ("fetch", "path") and name is None:
        raise UsageError("which network?", hint=f"For example: finetune weights {action} resnet50")
    if action == "list":
        for stored in list_weights():
            if stored.path:
                print(f"{stored.backbone:<24} {stored.place:<8} {stored.path}")
        print("Others are downloaded when they are first needed, or now: finetune weights fetch NAME")
    elif action == "fetch":
        with Terminal(quiet=arguments.quiet).stage(f"Fetching {name}") as update:
            fetched = fetch_weights(name, progress=update)
        for file in fetched:
            print(file.path)
    elif action == "verify":
        for stored, problem in verify_weights():
            print(f"ok  {stored.path}" if problem is None else f"BAD {stored.path}  {problem}")
    else:  # where the files are, or would be
        row = find_backbone(name)
        for stored in list_weights():
            if stored.backbone == row.name:
                print(stored.path or cache_folder() / "weights" / stored.file.name)
