"""The checks of the gate, in order: what must hold before anything is run first, what costs most last."""

from __future__ import annotations

from typing import Final

from deployment.checks.champion import NotWorseThanChampion
from deployment.checks.contract import GateCheck
from deployment.checks.latency import Latency
from deployment.checks.outputs import ExtremeInputs, Outputs
from deployment.checks.quality import AucFloor, CalibrationError, OverBaselines
from deployment.checks.schema import Schema
from deployment.checks.size import Size
from deployment.checks.stability import FeatureNoise, Halves, MissingFeatures, Segments, TimeSlices

#: Where one of these fails, nothing further is run: its figures would mean nothing.
FIRST: Final[tuple[GateCheck, ...]] = (Schema(), Size())
THEN: Final[tuple[GateCheck, ...]] = (
    AucFloor(),
    OverBaselines(),
    CalibrationError(),
    NotWorseThanChampion(),
    Halves(),
    FeatureNoise(),
    MissingFeatures(),
    TimeSlices(),
    Segments(),
    Outputs(),
    ExtremeInputs(),
    Latency(),
)
