"""What a scan's file name says: the patient, and perhaps the phase or the frame.

The challenges and their tools add suffixes to a patient's name: ACDC `_4d`, `_frame01` and `_gt`, M&Ms `_sa` and
`_sa_gt`, M&Ms-2 `_SA_ED`, nnU-Net `_0000` (the channel), submissions `_ED`, `_ES` and `_pred`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# Only channel 0000 of nnU-Net: 0001 and the like are too often a patient's number.
_SUFFIX = re.compile(
    r"^(?P<rest>.+)_(?:gt|pred|seg|mask|label|4d|cine|0000|sax?|(?P<view>la)x?|frame(?P<frame>\d+)|(?P<phase>ed|es))$",
    re.I,
)


class ScanName(NamedTuple):
    """The parts of a scan's name.

    Attributes:
      patient: the name without any known suffix.
      phase: 'ED', 'ES' or ''.
      frame: as the name has it (ACDC counts from 1), or None.
      view: 'la' for a long-axis scan, or ''.
    """

    patient: str
    phase: str = ""
    frame: int | None = None
    view: str = ""

    @property
    def key(self) -> str:
        """The patient, for comparison: capitals do not count."""
        return self.patient.casefold()


def parse(name: str) -> ScanName:
    """Takes a scan's name apart: 'patient901_4d' -> patient901, 'A0S9V9_sa_ES' -> A0S9V9 at ES.

    Args:
      name: of a file, without .nii or .nii.gz.
    """
    phase, view, frame = "", "", None
    while match := _SUFFIX.match(name):
        name = match["rest"]
        phase = phase or (match["phase"] or "").upper()
        view = view or (match["view"] or "").lower()
        frame = frame if match["frame"] is None or frame is not None else int(match["frame"])
    return ScanName(name, phase, frame=frame, view=view)
