"""Compare an int8 file with the simulation that training computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import export.int8.quantize
import export.int8.search
from compress.core.errors import StageError
from compress.core.records.training import CalibrationData, Trained
from compress.data.augment import views
from compress.training import build
from compress.training.evaluation import predict
from export.int8.qat.model import Simulation
from export.int8.quantize import PreparedGraph, QuantizeSettings

LEAST_AGREEMENT = 0.98  # of the predictions of simulation and file, which differ where a sum ends between two levels
COMPARED_IMAGES = 1000  # validation images on which simulation and file are compared


def compare_with_file(
    simulation: Simulation,
    prepared: PreparedGraph,
    settings: QuantizeSettings,
    student: Trained,
    data: CalibrationData,
    path: Path,
) -> tuple[float, float]:
    """Return the fraction of equal predictions and the mean |logit difference| of the simulation and the int8 file.

    Raises StageError if too many predictions differ.
    """
    dataset = build.load_images(data.training, "cpu")
    chosen = dataset.validation()[:COMPARED_IMAGES]
    tuned = export.int8.quantize.with_weights(prepared, simulation.learned_weights())
    export.int8.quantize.emit(tuned, path, settings, simulation.learned_ranges())
    written = export.int8.search.logits(
        path, settings.isa, np.ascontiguousarray(views.evaluation_view(chosen, dataset.image_size).numpy())
    )
    path.unlink()
    simulated = predict(simulation, chosen, dataset.image_size, student.network.normalization).numpy()
    differ = int((simulated.argmax(1) != written.argmax(1)).sum())
    agreement = 1 - differ / len(chosen)
    # One image may lie between two classes, however few there are.
    if differ > max(1, (1 - LEAST_AGREEMENT) * len(chosen)):
        raise StageError(
            f"tune: the int8 file gives {100 * agreement:.1f} % of the predictions that training simulated "
            f"(at least {100 * LEAST_AGREEMENT:g} %): it is not what was trained"
        )
    return agreement, float(np.abs(simulated - written).mean())
