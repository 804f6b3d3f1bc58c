"""What a run with several clients shows."""

from __future__ import annotations

from functools import partial

from ..report import Findings
from .figures import tabulate
from .plots import plots
from .record import LoadMeasurement, as_dict
from .tables import headlines, tables


def findings_of(measurement: LoadMeasurement) -> Findings:
    """Of a run with several clients."""
    table = tabulate(measurement)
    return Findings(
        f"resps-bench with several clients: {measurement.engine.model} {measurement.engine.precision}",
        tuple(headlines(measurement, table)),
        tuple(tables(table)),
        partial(plots, table),
        partial(as_dict, measurement, table),
    )
