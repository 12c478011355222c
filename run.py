"""Trains, evaluates and uses J-RAS models.

    python run.py --config=configs/demo.py                                  train, evaluate, report
    python run.py --mode=evaluate --workdir=runs/demo --config.eval.split=test
    python run.py --mode=predict --workdir=runs/demo --input=SCAN.nii.gz --output=masks
    python run.py --mode=choose --workdir=runs/demo      do post-processing, test-time augmentation help? (validation)
    python run.py --mode=gallery --workdir=runs/demo --input=LABELLED_SCANS --output=GALLERY

Any setting of jras_jax/config/schema.py is overridden with --config.section.key=value.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import traceback

from jras_jax.errors import UserError

MODES = ("train", "evaluate", "choose", "predict", "gallery", "pretrain_retriever")


def parser() -> argparse.ArgumentParser:
    """The command line; --config.a.b=value arguments are left over for the config."""
    p = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--config", help="config file; evaluate and predict take the run's own")
    p.add_argument("--mode", default="train", choices=MODES)
    p.add_argument("--workdir", help="folder of the run (default: runs/<config's name>)")
    p.add_argument("--input", help="predict: a NIfTI file, or a folder of them; gallery: a folder of labelled scans")
    p.add_argument("--output", help="predict: folder for the masks; gallery: for the gallery; evaluate: to submit")
    p.add_argument(
        "--gallery",
        help="predict: folder of another gallery made by this run's retriever, or of labelled scans (NAME.nii.gz with "
        "NAME_gt.nii.gz); gallery: the gallery to change, in place or into --output",
    )
    p.add_argument("--split", help="gallery: make it of train, validation or test patients of the run's data set")
    p.add_argument("--add", help="gallery: folder of labelled scans to add to --gallery")
    p.add_argument("--remove", default="", help="gallery: patients to leave out, PATIENT,PATIENT")
    p.add_argument("--labels", help="label values of labelled scans, LV:1,MYO:2,RV:3 (default: the run's data set's)")
    p.add_argument("--no_report", action="store_true", help="train: stop after training, without evaluation and report")
    p.add_argument("--coordinator", default="", help="several hosts without a scheduler: HOST:PORT of the first")
    p.add_argument("--num_processes", type=int, default=0, help="several hosts without a scheduler: how many")
    p.add_argument("--process_id", type=int, default=-1, help="several hosts without a scheduler: this one's number")
    return p


def main(argv: list[str] | None = None) -> int:
    """Runs one mode; returns the exit status (2: a mistake of the user, printed without a traceback)."""
    # abbreviations off, so that --config.x.y is never taken for a prefix of something else
    p = parser()
    p.allow_abbrev = False
    args, rest = p.parse_known_args(argv)
    try:
        return _run(args, tuple(rest))
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        return _leave(2)
    except Exception:
        if not _several_hosts():
            raise
        traceback.print_exc()
        print(
            "error: this host stopped, or another one of the job that it talked to (the lines above say which). Start "
            "the job again with the same command, on any number of hosts: it goes on from its last checkpoint",
            file=sys.stderr,
        )
        return _leave(1)


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


def _run(args: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    # Imports wait until here so that --help and mistakes in the command line answer at once.
    from absl import logging

    from jras_jax import commands, mesh

    logging.set_verbosity(logging.INFO if os.environ.get("JRAS_VERBOSE") else logging.WARNING)
    mesh.keep_freed_memory()
    mesh.initialize_hosts(args.coordinator, args.num_processes, args.process_id)
    import tfds_builders

    if args.mode in ("train", "pretrain_retriever"):
        if not args.config:
            raise UserError(f"--mode={args.mode} needs --config=FILE, such as --config=configs/demo.py")
        return commands.train_mode(args.mode, args.config, args.workdir, overrides, tfds_builders.build, args.no_report)
    if not args.workdir:
        raise UserError(f"--mode={args.mode} needs --workdir=FOLDER of a trained run")
    if args.config:
        raise UserError(f"--mode={args.mode} reads the run's own configuration from --workdir; leave --config out")
    if args.mode == "evaluate":
        return commands.evaluate_mode(args.workdir, overrides, tfds_builders.build, args.output)
    if args.mode == "choose":
        return commands.choose_mode(args.workdir, overrides, tfds_builders.build)
    if args.mode == "gallery":
        return commands.gallery_mode(args, overrides, tfds_builders.build)
    if not args.input or not args.output:
        raise UserError("--mode=predict needs --input=FILE_OR_FOLDER and --output=FOLDER")
    return commands.predict_mode(
        pathlib.Path(args.workdir), args.input, args.output, args.gallery, args.labels, overrides
    )


if __name__ == "__main__":
    sys.exit(main())
