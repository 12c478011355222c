"""TFDS finds the builder of the folder's name here."""

from tfds_builders.folder.folder_dataset_builder import Builder, survey

__all__ = ["Builder", "survey"]
