"""The certificate of retrieval: what one checkpoint scores with the guides it retrieves, and with controls.

real      what the run retrieves: the scores of the evaluation itself
random    gallery slices drawn at random for each query slice, with equal weights
blank     no guide at all: images and masks zero, see `joint.controls.blanked`
permuted  the real guides, every structure of their masks under another one's name
oracle    the gallery slices whose masks overlap the true one most: what a perfect retriever would choose
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jras_jax.evaluation import statistics
from jras_jax.evaluation.compare import LEAST_PATIENTS_FOR_TEST

CONTROLS = ("random", "blank", "permuted", "oracle")
LEVEL = 0.05  # of p, below which a difference counts
HELPS, HARMS, NEITHER = "helps", "harms", "no measurable effect"
TEST = (
    "Wilcoxon's signed-rank test, two-sided, of the patients' mean Dice; the interval is a 95% bootstrap over patients"
)


def certify(
    dice: Mapping[str, Sequence[float]], patients: Sequence[str], *, trained_with_blank: bool, strategy: str
) -> dict[str, Any]:
    """The certificate.

    Args:
      dice: 'real' and each of `CONTROLS` -> mean Dice over the structures of each volume.
      patients: whose volume each is.
      trained_with_blank: whether the network met blank guides in training.
      strategy: config.retrieval.strategy of the evaluation.

    Returns:
      'real' and each control: means over volumes; 'real_minus_blank' and 'real_minus_random', see `difference`;
      'verdict', see `verdict`; 'test', 'patients', 'volumes', 'seeds', 'trained_with_blank'; 'note' if there is one.
    """
    minus = {name: difference(dice["real"], dice[name], patients) for name in ("blank", "random")}
    found: dict[str, Any] = {name: float(np.mean(dice[name])) for name in ("real", *CONTROLS)}
    found |= {f"real_minus_{name}": values for name, values in minus.items()}
    found |= {"test": TEST, "patients": len(set(patients)), "volumes": len(patients), "seeds": 1}
    found |= {"trained_with_blank": trained_with_blank}
    found |= {"verdict": verdict(**minus, trained_with_blank=trained_with_blank)}
    notes = []
    if not trained_with_blank:
        notes.append("the run was trained without blank guides, so the verdict rests on random guides alone")
    if found["patients"] < LEAST_PATIENTS_FOR_TEST:
        notes.append(f"there is no test for fewer than {LEAST_PATIENTS_FOR_TEST} patients")
    if strategy == "random":
        notes.append("the guides of this evaluation are random ones themselves")
    if strategy == "oracle":
        notes.append("the guides of this evaluation were chosen by the true masks, which no new scan has")
    return found | ({"note": "; ".join(notes)} if notes else {})


def difference(real: Sequence[float], control: Sequence[float], patients: Sequence[str]) -> dict[str, float]:
    """Real minus control over volumes: 'difference' of the means, 'low', 'high' and 'p' (see `TEST`).

    p is NaN for fewer than `LEAST_PATIENTS_FOR_TEST` patients, and so are the bounds for one patient.
    """
    differences = [a - b for a, b in zip(real, control, strict=True)]
    means = list(statistics.patient_means(patients, differences).values())
    low, high = statistics.bootstrap_mean(differences, patients) if len(means) > 1 else (math.nan, math.nan)
    enough = len(means) >= LEAST_PATIENTS_FOR_TEST
    p = statistics.paired_wilcoxon(means, [0.0] * len(means)) if enough else math.nan
    return {"difference": float(np.mean(differences)), "low": low, "high": high, "p": p}


def verdict(blank: Mapping[str, float], random: Mapping[str, float], *, trained_with_blank: bool) -> str:
    """'helps': significantly above both; 'harms': significantly below either; else 'no measurable effect'.

    Args:
      blank, random: of `difference`, real minus each.
      trained_with_blank: if False, blank guides are new to the network and do not count.
    """
    counted = [blank, random] if trained_with_blank else [random]
    significant = [math.copysign(1.0, d["difference"]) if d["p"] < LEVEL else 0.0 for d in counted]
    if any(sign < 0 for sign in significant):
        return HARMS
    return HELPS if all(sign > 0 for sign in significant) else NEITHER


def sentence(certificate: Mapping[str, Any]) -> str:
    """The certificate of a summary in one line of text for a person.

    Example: 'Retrieval helps: Dice 0.812 with the retrieved guides, 0.801 with random ones (+0.011, 95% interval +0.002
    to +0.020, p 0.012), ...; one seed.'
    """
    parts = []
    for name in ("random", "blank"):
        d = certificate[f"real_minus_{name}"]
        facts = [f"{d['difference']:+z.3f}"]
        if d["low"] is not None:
            facts.append(f"95% interval {d['low']:+z.3f} to {d['high']:+z.3f}")
        facts.append("no test" if d["p"] is None else "p below 0.001" if d["p"] < 0.001 else f"p {d['p']:.3f}")
        parts.append(f"{certificate[name]:.3f} with {name} ones ({', '.join(facts)})")
    word = {HELPS: "Retrieval helps", HARMS: "Retrieval harms"}.get(
        certificate["verdict"], "Retrieval has no measurable effect"
    )
    others = (
        f"{certificate['permuted']:.3f} with permuted classes, {certificate['oracle']:.3f} with the oracle's guides"
    )
    note = f" Note: {certificate['note']}." if certificate.get("note") else ""
    real = f"Dice {certificate['real']:.3f} with the retrieved guides"
    return f"{word}: {real}, {', '.join(parts)}, {others}; one seed.{note}"
