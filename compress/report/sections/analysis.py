"""What `compress analyze` adds: gradients, correlations of logits, features, calibration, and runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress.report import formats
from compress.report.analysis_plots import MATRICES
from compress.report.formats import fixed, percent, thousands
from compress.report.read import Source
from compress.report.schema import AnalysisSection
from compress.report.schema.analysis import CalibrationRow, CorrelationRow, FeatureAnalysis, GradientAnalysis
from compress.report.views import Cell, Drawing, Table, cells, drawing

CURVES = (
    ("accuracy", "Validation accuracy"),
    ("loss", "Cross-entropy"),
    ("gradients", "Cosine of the two losses' gradients"),
)
CORRELATIONS = ("Against the teacher", "Images", "Mean |difference|", "Largest", "Mean |difference| of mean logits")
CALIBRATION = ("File", "ECE", "Mean confidence", "Top-1", "Negative log-likelihood, nats")

Drawn = Mapping[str, str]


@dataclass(frozen=True)
class PlotsView:
    """Plots with a note; `sentence` says what is missing."""

    note: str
    drawings: Sequence[Drawing]
    sentence: str = ""


@dataclass(frozen=True)
class GradientsView:
    """The cosines of the gradients, or why there are none."""

    drawing: Drawing | None
    met: str
    sentence: str


@dataclass(frozen=True)
class CorrelationsView:
    """The differences of correlations; `heads`: whether an auxiliary head is among them."""

    table: Table | None
    drawings: Sequence[Drawing]
    heads: bool


@dataclass(frozen=True)
class CalibrationView:
    """The reliability diagram with its numbers."""

    table: Table | None
    drawing: Drawing | None
    note: str


@dataclass(frozen=True)
class UnderstandingView:
    """Everything that the analysis found."""

    against: PlotsView | None
    gradients: GradientsView
    correlations: CorrelationsView
    features: PlotsView
    calibration: CalibrationView
    missing_logits: str


def understanding(source: Source, drawn: Drawn) -> UnderstandingView | None:
    """Build the section; None where `compress analyze` was not run. `drawn`: SVG documents by name."""
    analysis = source.report.analysis
    if analysis is None:
        return None
    return UnderstandingView(
        against=_against(analysis, drawn),
        gradients=_gradients(analysis.gradients, drawn),
        correlations=_correlations(analysis, drawn),
        features=_features(analysis.features, analysis.seed, drawn),
        calibration=_calibration(analysis.calibration, drawn),
        missing_logits=analysis.logits.sentence or "",
    )


def _shown(*drawings: Drawing | None) -> list[Drawing]:
    return [one for one in drawings if one is not None]


def _against(analysis: AnalysisSection, drawn: Drawn) -> PlotsView | None:
    """Build the training curves of several runs."""
    rows = analysis.against
    if not rows:
        return None
    names = " and ".join(f"{row.recipe} ({percent(row.top1_validation, 2) or 'no accuracy'})" for row in rows)
    note = (
        f"{names}; in brackets the last epoch's accuracy on validation. One training each: a difference may be the "
        "seed's."
    )
    plots = (drawing(drawn, f"against-{name}", f"{what} by epoch of {names}") for name, what in CURVES)
    return PlotsView(note, _shown(*plots))


def _gradients(found: GradientAnalysis, drawn: Drawn) -> GradientsView:
    lowest = ", ".join(f"{name} {value:+.2f}".replace("-", formats.MINUS) for name, value in found.lowest.items())
    alt = f"Cosine between the gradients of the first loss and of all others by epoch; lowest: {lowest}"
    caption = f"Each point is an epoch's mean over every {found.every}th step, before any alignment."
    return GradientsView(
        drawing=drawing(drawn, "gradients", alt, caption),
        met=_met(found) if found.head else "",
        sentence=found.sentence or "",
    )


def _met(found: GradientAnalysis) -> str:
    """Return where the losses meet in this run, and whether their gradients opposed each other."""
    shared = (found.head or {}).get("head") == "none"
    place = (
        "Both losses are on one classifier"
        if shared
        else "Each loss has a head of its own, so they meet in the backbone alone"
    )
    below = [name for name, value in found.lowest.items() if value < 0]
    if not below:
        return f"{place}; in no epoch did their gradients oppose each other."
    return f"{place}; their gradients opposed each other in an epoch's mean: {' and '.join(below)}."


def _correlations(analysis: AnalysisSection, drawn: Drawn) -> CorrelationsView:
    """Build the matrices of differences and their mean absolute values."""
    rows = [*analysis.correlations, *analysis.heads]
    lines = [
        cells(
            row.what,
            f"{thousands(row.pictures)} {row.split}",
            fixed(row.mean_abs, 4),
            fixed(row.max_abs, 3),
            fixed(row.mean_logits_abs, 3),
        )
        for row in rows
    ]
    table = Table("Differences of correlations", cells(*CORRELATIONS), lines) if rows else None
    return CorrelationsView(table, _shown(*(_matrix(row, drawn) for row in rows)), bool(analysis.heads))


def _matrix(row: CorrelationRow, drawn: Drawn) -> Drawing | None:
    if row.what not in MATRICES:
        return None
    mean = fixed(row.mean_abs, 4)
    return drawing(
        drawn,
        MATRICES[row.what],
        f"Matrix of the differences of logit correlations, {row.what} against teacher; mean {mean}",
        f"{row.what.capitalize()}, {thousands(row.pictures)} {row.split} images: mean |difference| {mean}.",
    )


def _features(found: FeatureAnalysis, seed: int | None, drawn: Drawn) -> PlotsView:
    """Build both networks' t-SNE."""
    sentence = found.sentence or ""
    if not found.networks:
        return PlotsView("", [], sentence)
    some = (found.of_classes or 0) > len(found.classes)
    classes = f"{len(found.classes)} of {found.of_classes} classes" if some else "all classes"
    near = "; ".join(f"{row.role} {percent(row.same_class_neighbours)}" for row in found.networks)
    plots = [
        drawing(
            drawn,
            f"features-{row.role}",
            f"t-SNE of the {row.role}'s features, a colour and a shape a class",
            f"{row.model}, {row.width} features",
        )
        for row in found.networks
    ]
    method = (
        f" Drawn by t-SNE (van der Maaten and Hinton 2008; perplexity {found.perplexity or 0:g}, from principal "
        f"components, seed {seed}), each network by itself: which points are neighbours means something, distances "
        "between groups and the axes do not."
    )
    note = (
        f"What each classifier reads, for the same {thousands(found.pictures)} validation images of {classes}."
        f"{method if any(plots) else ''} Of the {found.neighbours} nearest neighbours of "
        f"an image in the features themselves, this share is of its class: {near}."
    )
    return PlotsView(note, _shown(*plots), sentence)


def _calibration(rows: Sequence[CalibrationRow], drawn: Drawn) -> CalibrationView:
    """Build the reliability diagram with its numbers."""
    if not rows:
        return CalibrationView(None, None, "")
    lines = [
        [
            Cell(row.what),
            Cell(percent(row.ece, 2), formats.interval(row.ece_ci95, 100, 2)),
            Cell(percent(row.confidence, 2)),
            Cell(percent(row.top1, 2)),
            Cell(fixed(row.nll, 3)),
        ]
        for row in rows
    ]
    one = rows[0]
    note = (
        "Expected calibration error (ECE): the images are sorted by confidence, the largest softmax probability, "
        f"into {one.bins} equal bins. The ECE is the mean of |accuracy \u2212 confidence| over the bins, weighted by "
        f"their {thousands(one.pictures)} test images (Naeini et al. 2015; Guo et al. 2017). The interval is a "
        f"bootstrap of {thousands(one.resamples)} resamples of the images; bins with few images bias both upwards."
    )
    errors = ", ".join(f"{row.what} {percent(row.ece, 2)}" for row in rows)
    plot = drawing(drawn, "calibration", f"Accuracy against confidence; expected calibration errors: {errors}")
    return CalibrationView(Table("Calibration", cells(*CALIBRATION), lines), plot, note)
