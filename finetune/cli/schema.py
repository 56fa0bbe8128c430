"""`finetune schema`: the keys of a config file, as a JSON schema for editors or as a table for people."""

import argparse

from finetune.cli.output import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: finetune schema > finetune.schema.json"
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table of all keys instead")


def run(arguments: argparse.Namespace) -> None:
    from finetune.config import config_reference, json_schema

    if arguments.markdown:
        print(config_reference(), end="")
    else:
        print_json(json_schema())
