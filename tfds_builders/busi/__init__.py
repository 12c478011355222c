"""TFDS finds the builder of the folder's name here."""

from tfds_builders.busi.busi_dataset_builder import Builder

__all__ = ["Builder"]
