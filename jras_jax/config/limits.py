"""Bounds that several sections share."""

from __future__ import annotations

from collections.abc import Iterator

Rules = Iterator[tuple[str, bool, str]]  # (setting, whether the rule holds, what the setting must be)
MAX_SEED = 2**31 - 1  # streams use seed + 1 and seed + 2, which must stay inside 32 bits
MAX_STEPS = 10**9
MAX_BATCH = 65_536
MAX_PATIENTS = 10**6
