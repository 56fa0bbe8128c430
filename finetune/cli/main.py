"""The command line. Every command is one short function; what it needs is imported when it runs, not before."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from finetune.utils import FinetuneError, PartlyDone, ResourceError, UsageError, exits_at_once, require_packages

EXAMPLES = """examples:
  finetune train digits                              a first run: real data, real weights, no download
  finetune init photos/                              write a config for a folder of images
  finetune check photos.yaml                         what could go wrong, and how long it will take
  finetune train photos.yaml head.epochs=5           train with it; any value can be overridden
  finetune train --resume runs/photos-1              go on after an interruption
  finetune sweep photos.yaml --set head.learning_rate=1e-4..1e-2 --trials 20
  finetune predict dog.jpg                           1000 ImageNet classes, no training
  finetune predict images/ --model runs/photos-1 --json
  finetune explain dog.jpg --class beagle            where in the image it was seen
  finetune evaluate runs/photos-1
  finetune export runs/photos-1 --format litert --quantize int8
  finetune demo runs/photos-1                        a page in the browser: drop images, see answers
  finetune backbones resnet50
  finetune tensorboard
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; the `finetune` script calls it, without `argv`."""
    if argv is None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError):  # none at all, or nobody there to read it
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # not every terminal has an ü
    arguments = _parse(argv)
    arguments.words = list(sys.argv[1:] if argv is None else argv)
    code = _run(arguments)
    if argv is None and (code in (130, 143) or exits_at_once()):
        _leave(code)
    return code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; a `key=value` may also stand behind an option, where argparse alone would not know it."""
    parser = _parser()
    arguments, left = parser.parse_known_args(argv)
    if unknown := [word for word in left if word.startswith("-") or "=" not in word or "overrides" not in arguments]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if left:
        arguments.overrides = [*arguments.overrides, *left]
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    if arguments.version:
        print(f"finetune {version('finetune')}")
        return 0
    if not arguments.command:
        _parser().print_help()
        return 2
    if arguments.debug:
        os.environ["FINETUNE_DEBUG"] = "1"
    try:
        code = arguments.command(arguments) or 0
        if sys.stdout is not None:
            sys.stdout.flush()  # here a closed pipe is quiet; at the end of the interpreter it is not
    except FinetuneError as error:
        if arguments.debug:
            raise
        _complain(f"error: {error}" if not isinstance(error, PartlyDone) else str(error))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("stopped")
        return 130
    except (BrokenPipeError, SystemExit):  # whoever read our output has seen enough; rich makes it an exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if arguments.debug:
            raise
        if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("finetune"):
            _complain(f"error: the package {error.name} is missing.\n  pip install --upgrade finetune")
            return ResourceError.exit_code
        return _report_bug(error)
    return int(code)


def _leave(code: int) -> None:
    """Ends the process at once, whatever its threads do: one may hang in a dead disk."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError):  # closed, or none at all
            stream.flush()
    os._exit(code)


def _complain(text: str) -> None:
    with suppress(OSError, AttributeError):  # nobody there to read it, or no stderr at all
        encoding = sys.stderr.encoding or "utf-8"
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)


def _report_bug(error: Exception) -> int:
    """A fault of ours: keep what is needed to mend it in a file, and say so in one line."""
    import tempfile
    import traceback

    details = "Details: the same command with --debug."
    with suppress(OSError):  # a full disk, say
        with tempfile.NamedTemporaryFile("w", prefix="finetune-bug-", suffix=".txt", delete=False) as file:
            file.write(f"finetune {version('finetune')}, Python {sys.version}\ncommand: {sys.argv[1:2]}\n\n")
            file.write("".join(traceback.format_exception(error)))
        details = f"The details are in {file.name}; --debug shows them here."
    _complain(f"error: this is a fault of finetune, not of yours: {type(error).__name__}: {error}\n  {details}")
    return 1


# ------------------------------------------------------------------------------------------------- commands


def train(arguments: argparse.Namespace) -> int:
    from finetune.training import run_training

    if arguments.output:
        arguments.overrides.append(f"output={arguments.output}")
    return run_training(
        arguments.config,
        arguments.overrides,
        resume=arguments.resume,
        accept_data_change=arguments.accept_data_change,
        break_lock=arguments.break_lock,
        nproc=arguments.nproc,
        assert_accuracy=arguments.assert_accuracy,
        words=arguments.words,
        quiet=arguments.quiet,
    )


def sweep(arguments: argparse.Namespace) -> None:
    from finetune.training import check_search_space, read_search_space
    from finetune.utils import survive_closed_output

    varied = read_search_space(arguments.varied)  # before TensorFlow: a wrong key answers at once
    config = check_search_space(arguments.config, arguments.overrides, varied)
    require_packages("sweep", "optuna", extra="sweep")
    with survive_closed_output():
        from finetune.training import run_sweep, show_sweep
        from finetune.utils import Terminal

        screen = Terminal(quiet=arguments.quiet)
        result = run_sweep(
            arguments.config,
            arguments.overrides,
            config,
            varied,
            trials=arguments.trials,
            folder=arguments.output,
            storage=arguments.storage,
            terminal=screen,
        )
        show_sweep(result, as_json=arguments.json, terminal=screen)


def predict(arguments: argparse.Namespace) -> None:
    from finetune.models import find_inputs, read_path_list, shard

    # Before TensorFlow: a wrong path answers at once.
    paths = read_path_list(arguments.list) if arguments.list else find_inputs(arguments.inputs)
    if arguments.shard:
        paths = shard(paths, *arguments.shard)
    from finetune.cli.showing import show_predictions
    from finetune.utils import Terminal

    show_predictions(
        paths,
        model=arguments.model,
        top=arguments.top,
        imagenet=arguments.imagenet,
        level=arguments.level,
        precision=arguments.precision,
        as_json=arguments.json,
        csv_file=arguments.csv,
        figure=arguments.figure,
        overwrite=arguments.overwrite,
        resume=arguments.resume,
        batch_size=arguments.batch_size,
        engine=arguments.engine,
        terminal=Terminal(quiet=arguments.quiet),
    )


def explain(arguments: argparse.Namespace) -> None:
    from finetune.models import find_inputs

    paths = find_inputs(arguments.inputs)
    from finetune.cli.showing import show_explanations
    from finetune.utils import Terminal

    show_explanations(
        paths,
        model=arguments.model,
        target=arguments.target,
        method=arguments.method,
        top=arguments.top,
        figure=arguments.figure,
        output=arguments.output,
        overwrite=arguments.overwrite,
        terminal=Terminal(quiet=arguments.quiet),
    )


def evaluate(arguments: argparse.Namespace) -> None:
    from finetune.cli.showing import print_metrics
    from finetune.evaluation import evaluate_classifier, require_accuracy
    from finetune.utils import Terminal

    metrics = evaluate_classifier(
        arguments.model, arguments.data, split=arguments.split, terminal=Terminal(quiet=arguments.quiet)
    )
    if arguments.json:
        print(json.dumps(metrics.to_json(), indent=1))
    else:
        print_metrics(metrics)
    require_accuracy(metrics.accuracy, arguments.assert_accuracy)


def export(arguments: argparse.Namespace) -> None:
    from finetune.export import find_format
    from finetune.models import find_inputs

    find_format(arguments.format, arguments.quantize)  # before TensorFlow: a missing package answers at once
    find_inputs(arguments.images)
    from finetune.cli.showing import print_export
    from finetune.export import export_classifier
    from finetune.utils import Terminal

    made = export_classifier(
        arguments.model,
        arguments.format,
        output=arguments.output,
        quantize=arguments.quantize,
        images=arguments.images,
        assert_accuracy=arguments.assert_accuracy,
        terminal=Terminal(quiet=arguments.quiet),
    )
    if arguments.json:
        print(json.dumps({"folder": str(made.folder), **made.facts}, indent=1))
    else:
        print_export(made)


def demo(arguments: argparse.Namespace) -> None:
    from finetune.cli.demo import serve_demo

    require_packages("demo", "gradio", extra="demo")
    serve_demo(arguments.model, host=arguments.host, port=arguments.port, quiet=arguments.quiet)


def compare(arguments: argparse.Namespace) -> None:
    from finetune.evaluation import show_comparison

    show_comparison(arguments.runs, as_json=arguments.json, figure=arguments.figure, overwrite=arguments.overwrite)


def zeroshot(arguments: argparse.Namespace) -> None:
    from finetune.evaluation import show_survey
    from finetune.utils import Terminal

    show_survey(
        arguments.folder,
        model=arguments.model,
        images=arguments.images,
        as_json=arguments.json,
        terminal=Terminal(quiet=arguments.quiet),
    )


def check(arguments: argparse.Namespace) -> None:
    from finetune.cli.check import show_check
    from finetune.config import load_config
    from finetune.utils import Terminal

    show_check(
        load_config(arguments.config, arguments.overrides),
        arguments.config,
        as_json=arguments.json,
        figures=arguments.figures,
        overwrite=arguments.overwrite,
        compute_features=arguments.features,
        terminal=Terminal(quiet=arguments.quiet),
    )


def preview(arguments: argparse.Namespace) -> None:
    from finetune.config import load_config

    loaded = load_config(arguments.config, arguments.overrides)
    from finetune.evaluation import write_preview
    from finetune.utils import Terminal

    write_preview(
        loaded,
        output=arguments.output,
        images=arguments.images,
        augmented=arguments.augmented,
        overwrite=arguments.overwrite,
        terminal=Terminal(quiet=arguments.quiet),
    )


def backbones(arguments: argparse.Namespace) -> None:
    from finetune.cli.catalogue import (
        print_backbone,
        print_backbones,
    )

    if arguments.compare is not None:
        from finetune.evaluation import show_ranking
        from finetune.utils import Terminal

        folder = Path(arguments.compare) if arguments.compare else None
        show_ranking(folder, as_json=arguments.json, terminal=Terminal(quiet=arguments.quiet))
    elif arguments.name:
        print_backbone(arguments.name, as_json=arguments.json, figure=arguments.figure, overwrite=arguments.overwrite)
    else:
        print_backbones(as_json=arguments.json)


def init(arguments: argparse.Namespace) -> None:
    from finetune.cli.init import write_config

    target = write_config(arguments.folder, arguments.target)
    _complain(f"Wrote {target}\nNext: finetune train {target}")


def tensorboard(arguments: argparse.Namespace) -> None:
    if not arguments.folder.is_dir():
        raise UsageError(
            f"{arguments.folder}: no such folder, so there is nothing to show.",
            hint="finetune tensorboard takes a run directory, or the folder of the runs (default: runs).",
        )
    options = ["--logdir", str(arguments.folder), "--host", arguments.host, "--port", str(arguments.port)]
    every_epoch = ["--samples_per_plugin", "images=1000"]  # by default TensorBoard shows ten of a series
    os.execv(sys.executable, [sys.executable, "-m", "tensorboard.main", *options, *every_epoch])


def cache(arguments: argparse.Namespace) -> None:
    from finetune.utils import CACHE_KINDS, cache_sizes, clear_cache, format_bytes

    if arguments.action == "clear":
        freed = clear_cache(arguments.kind or "features")
        _complain(f"Freed {format_bytes(freed)}")
        return
    for kind, (count, size) in cache_sizes().items():
        print(f"{kind:<10} {count:>8,} files {format_bytes(size):>12}   {CACHE_KINDS[kind]}")


def weights(arguments: argparse.Namespace) -> None:
    from finetune.cli.catalogue import (
        fetch_and_print,
        print_weight_paths,
        print_weights,
        verify_and_print,
    )

    if arguments.action == "fetch":
        fetch_and_print(arguments.name)
    elif arguments.action == "path":
        print_weight_paths(arguments.name)
    elif arguments.action == "verify":
        verify_and_print()
    else:
        print_weights()


def schema(arguments: argparse.Namespace) -> None:
    from finetune.config import config_reference, json_schema

    if arguments.markdown:
        print(config_reference(), end="")
        return
    print(json.dumps(json_schema(), indent=1))


# --------------------------------------------------------------------------------------------------- parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finetune",
        description="Transfer learning for image classification, from one YAML file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(command=None, debug=False)
    commands = parser.add_subparsers(metavar="COMMAND")

    add = _adder(commands)

    sub = add("train", train, "train a classifier", "finetune train configs/flowers.yaml head.epochs=5")
    sub.add_argument("config", nargs="?", help="a YAML file, or the name of a shipped config (digits, flowers)")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace those of the file")
    sub.add_argument("--resume", nargs="?", const="", metavar="RUN", help="go on with RUN, or with the newest run")
    sub.add_argument("--output", metavar="DIR", help="folder for the run directory (default: runs)")
    sub.add_argument("--break-lock", action="store_true", help="resume although another computer seems to use the run")
    text = "N processes that train together, to try that out; on several machines, see docs/scale.md"
    sub.add_argument("--nproc", type=_positive, default=1, metavar="N", help=text)
    sub.add_argument("--accept-data-change", action="store_true", help="resume although images have changed")
    _add_assert_accuracy(sub)

    sub = add(
        "sweep", sweep, "try many settings and train the best", "finetune sweep flowers --set head.optimizer=adam,sgd"
    )
    sub.epilog += "; the same command goes on with an interrupted sweep, and beside a running one helps"
    sub.add_argument("config", help="a YAML file, or the name of a shipped config")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="values that all trials share")
    text = "what to vary: 1e-4..1e-2 is a range, adam,sgd a list; may be given several times"
    sub.add_argument("--set", dest="varied", action="append", default=[], metavar="KEY=VALUES", help=text)
    text = "how many, over all processes and restarts (default: %(default)s)"
    sub.add_argument("--trials", type=_positive, default=20, metavar="N", help=text)
    sub.add_argument("--output", type=Path, metavar="DIR", help="folder of the sweep (default: sweeps/NAME)")
    text = "database on a server, for processes on several machines (default: a file in the folder)"
    sub.add_argument("--storage", metavar="URL", help=text)
    sub.add_argument("--json", action="store_true", help="everything, as JSON on standard output")

    sub = add("predict", predict, "say what is in images", "finetune predict photos/ --model runs/flowers-1")
    which = sub.add_mutually_exclusive_group(required=True)
    text = "s3://, gs:// and other buckets too"
    which.add_argument("inputs", nargs="*", default=[], metavar="IMAGE|FOLDER|GLOB|URL", help=text)
    which.add_argument("--list", type=Path, metavar="FILE", help="instead: a file with the path of an image a line")
    sub.add_argument("--model", default="efficientnet_lite0", metavar="RUN|BACKBONE", help="default: %(default)s")
    sub.add_argument("--top", type=_positive, default=5, metavar="K", help="answers per image (default: 5)")
    sub.add_argument("--imagenet", action="store_true", help="beside a trained run, the 1000-class answer too")
    sub.add_argument("--level", action="store_true", help="what the likeliest ImageNet class is a kind of (WordNet)")
    text = 'answer "unknown" rather than be right less often than this, such as 0.98'
    sub.add_argument("--precision", type=_share, metavar="P", help=text)
    sub.add_argument("--json", action="store_true", help="one JSON array on standard output")
    sub.add_argument("--csv", type=Path, metavar="FILE", help="write a table")
    sub.add_argument("--resume", action="store_true", help="go on with the --csv table of an interrupted predict")
    sub.add_argument("--figure", type=Path, metavar="PNG", help="draw the image with its answers")
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")
    sub.add_argument("--batch-size", type=_positive, default=32, metavar="N")
    text = "only the i-th of n parts of the images (1/n to n/n); the parts in order are the whole"
    sub.add_argument("--shard", type=_shard, metavar="i/n", help=text)
    text = "ray: workers on the Ray cluster of RAY_ADDRESS, or on this machine"
    sub.add_argument("--engine", choices=("local", "ray"), default="local", help=text)

    sub = add("explain", explain, "show where the answer was found", "finetune explain dog.jpg --class beagle")
    sub.add_argument("inputs", nargs="+", metavar="IMAGE|FOLDER|GLOB")
    sub.add_argument("--model", default="efficientnet_lite0", metavar="RUN|BACKBONE", help="default: %(default)s")
    sub.add_argument("--class", dest="target", metavar="NAME", help="by name or WordNet id (default: the likeliest)")
    methods = ("grad-cam", "grad-cam++", "cam")
    sub.add_argument("--method", choices=methods, default="grad-cam", help="default: %(default)s")
    sub.add_argument("--top", type=_positive, default=5, metavar="K", help="answers beside the image (default: 5)")
    where = sub.add_mutually_exclusive_group()
    where.add_argument("--figure", type=Path, metavar="PNG", help="everything in one file")
    where.add_argument("--output", type=Path, metavar="DIR", default=Path("explanations"), help="default: %(default)s")
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")

    sub = add("evaluate", evaluate, "measure a classifier", "finetune evaluate runs/flowers-1 --data new_photos/")
    sub.add_argument("model", metavar="RUN|BACKBONE")
    sub.add_argument("--data", metavar="FOLDER|CSV", help="labelled images (default: the run's own)")
    sub.add_argument("--split", choices=("train", "validation", "test"), default="test")
    sub.add_argument("--json", action="store_true", help="everything, as JSON on standard output")
    _add_assert_accuracy(sub)

    sub = add(
        "export", export, "write a classifier for other programs", "finetune export runs/flowers-1 --format litert"
    )
    sub.add_argument("model", metavar="RUN|BACKBONE")
    formats = ("keras", "saved_model", "litert", "onnx", "openvino")
    sub.add_argument("--format", choices=formats, required=True, help="saved_model is what TensorFlow Serving takes")
    sub.add_argument("--quantize", choices=("float16", "int8"), help="smaller and faster, and a little different")
    sub.add_argument("--output", type=Path, metavar="DIR", help="a new folder (default: exports/NAME-FORMAT)")
    sub.add_argument(
        "--images", nargs="+", default=[], metavar="IMAGE|FOLDER", help="to compare on (default: a run's test images)"
    )
    sub.add_argument("--json", action="store_true", help="what export.json says, on standard output")
    _add_assert_accuracy(sub)

    sub = add("demo", demo, "a page in the browser to try a classifier on", "finetune demo runs/flowers-1")
    sub.add_argument("model", nargs="?", default="efficientnet_lite0", metavar="RUN|BACKBONE", help="%(default)s")
    sub.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other computers in (default: %(default)s)")
    sub.add_argument("--port", type=int, default=7860, help="default: %(default)s")

    sub = add("compare", compare, "put runs side by side", "finetune compare runs/flowers-1 runs/flowers-2")
    sub.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="all others are held against the first")
    sub.add_argument("--json", action="store_true", help="everything, as JSON on standard output")
    sub.add_argument("--figure", type=Path, metavar="PNG", help="draw curves and test accuracies")
    sub.add_argument("--overwrite", action="store_true", help="replace a file that exists")

    sub = add("check", check, "find what could go wrong, without training", "finetune check flowers head.epochs=5")
    sub.epilog += (
        "; exit code: 0 if nothing stands against the training, else that of the first problem: "
        "2 config or a step that diverges, 3 data, 4 weights, 5 disk or memory"
    )
    sub.add_argument("config", help="a YAML file, or the name of a shipped config")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace those of the file")
    sub.add_argument("--features", action="store_true", help="compute the features now, to compare images by them")
    sub.add_argument("--figures", type=Path, metavar="DIR", help="draw the learning rate, and images that look alike")
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")
    sub.add_argument("--json", action="store_true", help="everything, as JSON on standard output")

    sub = add("preview", preview, "show what goes into a training, a sheet per class", "finetune preview flowers")
    sub.add_argument("config", help="a YAML file, or the name of a shipped config")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="values that replace those of the file")
    sub.add_argument("--output", type=Path, metavar="DIR", default=Path("preview"), help="default: %(default)s")
    sub.add_argument(
        "--images", "--pictures", type=_positive, default=4, metavar="N", help="of each class (default: 4)"
    )
    sub.add_argument("--augmented", type=_positive, default=4, metavar="K", help="versions of each (default: 4)")
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")

    sub = add("zeroshot", zeroshot, "what a network knows of your folders untrained", "finetune zeroshot photos/")
    sub.add_argument("folder", type=Path, help="a folder with one folder per class")
    sub.add_argument("--model", default="efficientnet_lite0", metavar="BACKBONE", help="default: %(default)s")
    sub.add_argument(
        "--images", "--pictures", type=_positive, default=20, metavar="N", help="of each folder (default: 20)"
    )
    sub.add_argument("--json", action="store_true", help="everything, as JSON on standard output")

    sub = add("backbones", backbones, "list the networks, or tell about one", "finetune backbones resnet50")
    sub.add_argument("name", nargs="?")
    sub.add_argument("--figure", type=Path, metavar="PNG", help="draw the blocks of NAME, with their sizes")
    sub.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    sub.add_argument(
        "--compare",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="rank those whose weights are here: by speed, and on a folder with one folder per class by accuracy",
    )
    sub.add_argument("--json", action="store_true", help="everything, as JSON on standard output")

    sub = add("init", init, "write a config for a folder of images", "finetune init photos/")
    sub.add_argument("folder", type=Path)
    sub.add_argument("target", type=Path, nargs="?", help="the config (default: FOLDER's name with .yaml)")

    sub = add("tensorboard", tensorboard, "show the progress of runs in a browser", "finetune tensorboard runs")
    sub.add_argument("folder", type=Path, nargs="?", default=Path("runs"))
    sub.add_argument("--host", default="localhost")
    sub.add_argument("--port", type=int, default=6006)

    sub = add("cache", cache, "list or clear what is cached", "finetune cache clear")
    sub.add_argument("action", nargs="?", choices=("list", "clear"), default="list")
    sub.add_argument(
        "kind", nargs="?", choices=("features", "datasets", "weights", "scan"), help="only these (default: features)"
    )

    sub = add(
        "weights", weights, "bring ImageNet weights to a machine without a network", "finetune weights fetch resnet50"
    )
    sub.add_argument("action", nargs="?", choices=("list", "fetch", "verify", "path"), default="list")
    sub.add_argument("name", nargs="?", metavar="BACKBONE", help="for fetch and path")

    sub = add("schema", schema, "print the JSON schema of config files", "finetune schema > finetune.schema.json")
    sub.add_argument("--markdown", action="store_true", help="every key in a table for people")
    return parser


def _adder(commands: "argparse._SubParsersAction[argparse.ArgumentParser]"):  # type: ignore[no-untyped-def]
    def add(name: str, run, summary: str, example: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
        sub = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
        sub.set_defaults(command=run)
        sub.add_argument("--debug", action="store_true", help="show TensorFlow's messages and our tracebacks")
        sub.add_argument("--quiet", action="store_true", help="say nothing but errors")
        return sub

    return add


def _add_assert_accuracy(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--assert-accuracy", type=_share, metavar="SHARE", help="exit with 7 if the test accuracy is below, say 0.93"
    )


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1, such as 0.93")
    return share


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with i from 1 to n, such as 1/4 to 4/4")
    return int(number), int(count)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
