"""TFDS finds the builder of the folder's name here."""

from tfds_builders.covid.covid_dataset_builder import Builder

__all__ = ["Builder"]
