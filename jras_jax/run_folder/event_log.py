"""TensorBoard events of a run, written at once.

tensorboardX's own writer hands them to a thread; when that meets a full disk, the run would wait for it for ever.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from jras_jax.run_folder.layout import RunFolder


class EventLog:
    """An events file in a run's folder. If it cannot be written, that is said once and the run continues without.

    Args:
      folder: the run's.
      resume_step: what earlier files hold of later steps is to be forgotten; 0 for a new run.
    """

    def __init__(self, folder: RunFolder, resume_step: int):
        self._folder = folder
        self._writer: Any = None
        self._try(lambda: setattr(self, "_writer", EventsWriter(str(folder.path / "events"))))
        if resume_step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(event_pb2.Event(session_log=start, step=resume_step + 1))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers by name."""
        for name, value in values.items():
            if math.isnan(value):  # such as a rate that is not known yet
                continue
            self._write(event_pb2.Event(summary=summary.scalar(name, value), step=step))
        self._flush()

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds images (H, W, 3) uint8 by name."""
        for name, image in images.items():
            self._write(event_pb2.Event(summary=summary.image(name, image, dataformats="HWC"), step=step))
        self._flush()

    def text(self, name: str, text: str) -> None:
        """Adds a text (Markdown)."""
        self._write(event_pb2.Event(summary=summary.text(name, text), step=0))
        self._flush()

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._try(self._writer.close)
            self._writer = None

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        if self._writer is not None:
            self._try(lambda: self._writer.write_event(event))

    def _flush(self) -> None:
        if self._writer is not None:
            self._try(self._writer.flush)

    def _try(self, action: Any) -> None:
        try:
            action()
        except OSError as e:
            self._writer = None
            logging.getLogger("absl").warning(
                "TensorBoard events in %s cannot be written (%s); the run continues without",
                self._folder,
                e.strerror or e,
            )
