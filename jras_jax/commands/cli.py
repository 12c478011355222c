"""The command line: `jras COMMAND ...`, the same as `python run.py COMMAND ...`.

Each command is a module of this package with `add_arguments(parser)` and `run(args, overrides) -> exit status`. Only
the module of the command that is called is imported, so that mistakes in the command line answer at once.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence

import jras_jax
from jras_jax.errors import Stopped, UserError

COMMANDS = {
    "train": "train a model, or resume training; then evaluate and report",
    "pretrain": "pre-train the retriever without labels",
    "evaluate": "score a trained run's best checkpoint and write its report",
    "predict": "segment new scans",
    "choose": "measure on validation whether post-processing and test-time augmentation help",
    "gallery": "make or change a gallery of labelled scans",
    "export": "write a trained model as a program that runs without this project",
    "publish": "write a trained model, with a model card, as a folder for the Hugging Face hub",
    "score": "score folders of masks against reference masks",
    "compare": "compare two evaluated runs, case by case",
    "report": "write the report of an evaluated run",
    "check": "verify a folder of images and masks before it is built",
    "build": "prepare a data set from its official download",
    "convert": "convert published weights",
    "settings": "list every setting with its default, unit and source",
}
OLD_NAMES = {"pretrain_retriever": "pretrain"}  # of --mode
# Commands that run on devices, perhaps on several hosts.
NEED_A_JOB = ("train", "pretrain", "evaluate", "predict", "choose", "gallery", "export", "publish")
# What takes less memory of the device.
SMALLER = {
    "train": "set config.train.microbatches=2 or more (the same loss, one more forward pass), config.train.remat=True "
    "(on an accelerator), or lower config.train.batch_size; while validating, lower config.eval.batch_size",
    "pretrain": "lower config.pretrain.batch_size",
}


def overview() -> argparse.ArgumentParser:
    """The parser of `jras --help`: what there is, without any command's own options."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    p = argparse.ArgumentParser(
        prog="jras",
        usage="jras COMMAND [options] [--config.SECTION.KEY=VALUE ...]",
        description="Retrieval-augmented segmentation of medical images in JAX.\n\ncommands:\n" + "\n".join(lines),
        epilog="jras COMMAND --help lists the options of a command. python run.py takes the same arguments; without a\n"
        "command it trains.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    p.add_argument("--version", action="version", version=f"jras_jax {jras_jax.__version__}")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
      0 success, or training was stopped by SIGTERM and is saved; 1 some of the inputs could not be processed; 2 a
      mistake of the user or a refusal of the operating system (no space, no permission), printed in one line without a
      traceback; 130 stopped by Ctrl-C (training is saved).
    """
    command = None
    try:
        command, rest = _command(list(sys.argv[1:] if argv is None else argv))
        if command is None:
            overview().parse_args(rest or ["--help"])
            return 0
        status = _run(command, rest)
        sys.stdout.flush()
        return status
    except Stopped as e:
        print(e, flush=True)
        return e.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _leave(130)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return _leave(2)
    except BrokenPipeError:  # whoever read the output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _leave(1)
    except OSError as e:  # the last resort: whoever knows more says more
        from jras_jax import files

        if os.environ.get("JRAS_VERBOSE"):
            traceback.print_exc()
        print(f"error: {files.explained(e)}", file=sys.stderr)
        return _leave(2)
    except Exception as e:
        if (full := _out_of_memory(e, command)) and not os.environ.get("JRAS_VERBOSE"):
            print(f"error: {full}", file=sys.stderr)
            return _leave(2)
        if not _several_hosts():
            raise
        traceback.print_exc()
        print(
            "error: this host, or another host of the job, stopped (the lines above say which). Start "
            "the job again with the same command, on any number of hosts: it resumes from its last checkpoint",
            file=sys.stderr,
        )
        return _leave(1)


def _command(argv: list[str]) -> tuple[str | None, list[str]]:
    """The command and its arguments: `COMMAND ...`, or `--mode=COMMAND ...`, or (with options alone) train.

    None is the overview: nothing at all, --help or --version.
    """
    for i, argument in enumerate(argv):
        if argument.startswith("--mode="):
            return _known(argument.partition("=")[2]), argv[:i] + argv[i + 1 :]
        if argument == "--mode" and i + 1 < len(argv):
            return _known(argv[i + 1]), argv[:i] + argv[i + 2 :]
    if not argv or argv[0] in ("--help", "-h", "--version"):
        return None, argv
    if argv[0].startswith("-"):
        return "train", argv
    return _known(argv[0]), argv[1:]


def _known(name: str) -> str:
    name = OLD_NAMES.get(name, name)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else "jras --help lists them"
        raise UserError(f"{name!r} is not a command; {hint}")
    return name


class _Lines(logging.Handler):
    """Prints what is logged as the program prints its other messages: 'warning: ...' on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record."""
        kind = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        print(f"{kind}{self.format(record)}", file=sys.stderr, flush=True)


def _print_logged() -> None:
    """Before anything is logged: absl would install a handler whose lines begin with WARNING:absl."""
    if not logging.root.handlers:
        logging.root.addHandler(_Lines())


def _run(command: str, argv: list[str]) -> int:
    _print_logged()
    if command in NEED_A_JOB and sys.stderr.isatty() and not os.environ.get("JRAS_VERBOSE"):
        # XLA's alarm about a slow compile would break into the progress line and has no switch but the level of all its
        # messages, which is read when JAX is imported. XLA's failures are raised as exceptions all the same.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if command in NEED_A_JOB:
        # numpy's products are small here and run in threads beside the network: threads of their own would take the
        # cores from it (measured: eight times the processor time). Read when numpy is imported.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    module = importlib.import_module(f"jras_jax.commands.{command}")
    p = argparse.ArgumentParser(
        prog=f"jras {command}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # --config.x.y must never be taken for a prefix of another option
    )
    module.add_arguments(p)
    if command in NEED_A_JOB:
        job = p.add_argument_group("several hosts without a scheduler (SLURM, Kubernetes and Cloud TPU are detected)")
        job.add_argument("--coordinator", default="", metavar="HOST:PORT", help="address of the first host")
        job.add_argument("--num_processes", type=int, default=0, metavar="N", help="number of hosts")
        job.add_argument("--process_id", type=int, default=-1, metavar="I", help="number of this host, from 0")
    args, rest = p.parse_known_args(argv)
    for name, value in vars(args).items():  # a shell leaves `--workdir=~/runs` as it is
        if isinstance(value, (str, pathlib.Path)) and str(value).startswith("~"):
            setattr(args, name, type(value)(os.path.expanduser(value)))
    stray = [a for a in rest if not a.startswith("--config.")]
    if stray:
        raise UserError(f"{stray[0]!r} is not a known argument; settings are given as --config.section.key=value")
    if command in NEED_A_JOB:
        _start_job(args)
    elif rest:
        raise UserError(f"jras {command} takes no settings: leave {rest[0]} out")
    return module.run(args, tuple(rest))


def _start_job(args: argparse.Namespace) -> None:
    from absl import logging as absl_logging

    from jras_jax import hosts

    absl_logging.set_verbosity(absl_logging.INFO if os.environ.get("JRAS_VERBOSE") else absl_logging.WARNING)
    hosts.keep_freed_memory()
    hosts.initialize_hosts(args.coordinator, args.num_processes, args.process_id)


def _out_of_memory(error: Exception, command: str | None) -> str:
    """What to do if the memory of a device or of the host is used up, in one line; '' for any other error."""
    if "RESOURCE_EXHAUSTED" not in str(error) and not isinstance(error, MemoryError):
        return ""
    wanted = re.search(r"allocat\w* ([\d.]+ ?\w*B|\d+ bytes)", str(error))
    what = f"the memory is used up{f' ({wanted[1]} more were needed)' if wanted else ''}"
    return f"{what}: {SMALLER.get(command or '', 'lower config.eval.batch_size')}"


def _leave(status: int) -> int:
    """A host that fails does not wait for the others, as JAX's own exit does: they learn of it by its silence."""
    if _several_hosts():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _several_hosts() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()
