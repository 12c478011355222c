"""From the challenges' official downloads to prepared TFDS data sets, without TensorFlow."""

from tfds_builders.prepare import NAMES, build, describe, home, scans_root

__all__ = ["NAMES", "build", "describe", "home", "scans_root"]
