"""The page's part that `compress analyze` adds: gradients, correlations of logits, features, calibration, and runs side by side."""

from __future__ import annotations

from collections.abc import Mapping

from compress.report.analysis_plots import MATRICES
from compress.report.formats import is_number
from compress.report.markup import NOT_MEASURED, Child, Html, bracket, el, percent, section, table
from compress.report.read import Source
from compress.report.schema import AnalysisSection
from compress.report.schema.analysis import GradientAnalysis
from compress.report.sections.teacher_training_latency import figure_of

Drawn = Mapping[str, str]


def understanding(source: Source, drawn: Drawn) -> Html | None:
    """Everything that the analysis found; None where there was none."""
    analysis = source.report.analysis
    if analysis is None:
        return None
    parts = [
        _side_by_side(analysis, drawn),
        _gradients(analysis, drawn),
        _correlations(analysis, drawn),
        _features(analysis, drawn),
        _calibration(analysis, drawn),
    ]
    lead = (
        "What the distillation did, from what the run left: nothing was trained for it, and no test picture was read."
    )
    return section("understanding", "Understanding", *parts, lead=lead)


def _part(title: str, *children: Child) -> list[Child]:
    return [el("h3", title), *children]


def _quiet(text: Child) -> Html:
    return el("p", text, class_="quiet")


def _plots(*figures: Html | None) -> Html | None:
    shown = [figure for figure in figures if figure is not None]
    return el("div", *shown, class_="plots") if shown else None


def _side_by_side(analysis: AnalysisSection, drawn: Drawn) -> list[Child] | None:
    """The training curves of several runs."""
    rows = analysis.against
    if not rows:
        return None
    names = " and ".join(
        f"{row.recipe} ({percent(row.top1_validation, 2) if is_number(row.top1_validation) else 'no accuracy'})"
        for row in rows
    )
    note = _quiet(
        f"{names}; in brackets the last epoch's accuracy on validation. One training each: a difference may be the seed's."
    )
    figures = (
        figure_of(drawn, f"against-{name}", f"{what} by epoch of {names}")
        for name, what in (
            ("accuracy", "Validation accuracy"),
            ("loss", "Cross-entropy"),
            ("gradients", "Cosine of the two losses' gradients"),
        )
    )
    return _part("Side by side", note, _plots(*figures))


PROPOSITIONS = (
    (
        "Proposition 1, of a row of the classifier. ",
        "Cross-entropy pulls the row of class k toward that class's features, by 1 \u2212 p, and pushes it from all others, by p: its signs never change. "
        "BinaryKL does so by \u03c4 (q of the teacher \u2212 q of the student), q = sigmoid(logit / \u03c4): its sign turns where the student's logit passes "
        "the teacher's, and there the two fight over the same row.",
    ),
    (
        "Proposition 2, of a picture's feature. ",
        "The same terms, with the classifier's rows in place of the features: the backbone gets the two losses through these sums.",
    ),
)


def _gradients(analysis: AnalysisSection, drawn: Drawn) -> list[Child]:
    """The cosines beside what the paper says about them."""
    title, found = "Do the two losses pull together?", analysis.gradients
    if "gradients" not in drawn:
        return _part(title, el("p", found.sentence))
    lowest = ", ".join(f"{name} {value:+.2f}".replace("-", "\u2212") for name, value in found.lowest.items())
    alt = f"Cosine between the gradients of the first loss and of all others by epoch; lowest: {lowest}"
    caption = f"Each point is an epoch's mean over every {found.every}th step, before any alignment."
    said = [el("p", el("b", name), text, class_="quiet") for name, text in PROPOSITIONS]
    said.append(
        _quiet(
            "From these two the DHKD paper (Yang et al. 2024) concludes that the losses conflict in the classifier and not in the backbone."
        )
    )
    aside = el("div", *([el("p", _met(found), class_="said")] if found.head else []), *said, class_="aside")
    return _part(title, el("div", figure_of(drawn, "gradients", alt, caption), aside, class_="plots"))


def _met(found: GradientAnalysis) -> str:
    """Where the losses meet in this run, and what the lowest cosine was there."""
    shared = (found.head or {}).get("head") == "none"
    place = (
        "Both losses are on one classifier"
        if shared
        else "Each loss has a head of its own, so they meet in the backbone alone"
    )
    below = [name for name, value in found.lowest.items() if value < 0]
    seen = (
        f"their gradients opposed each other in an epoch's mean: {' and '.join(below)}"
        if below
        else "in no epoch did their gradients oppose each other"
    )
    return f"{place}; {seen}."


def _correlations(analysis: AnalysisSection, drawn: Drawn) -> list[Child]:
    """The matrices of differences and their mean absolute values."""
    title, rows = (
        "Does the student relate classes as the teacher does?",
        [*analysis.correlations, *analysis.heads],
    )
    if not rows:
        return _part(title, el("p", analysis.logits.sentence))
    note = (
        "Pearson's correlation of every two classes' logits over the pictures, the student's minus the teacher's (Tian et al. 2020): the paler, the more "
        "alike. The means are over the entries beside the diagonal. The last column is what the figures of mdistiller and DKD show: the difference of the "
        "mean logits of each true class."
    )
    if analysis.heads:
        note += " The auxiliary head does not ship; it is compared on validation pictures, and the classifier once more on the same ones."
    lines: list[list[Child]] = [
        [
            row.what,
            f"{row.pictures:,} {row.split}",
            f"{row.mean_abs:.4f}",
            f"{row.max_abs:.3f}",
            f"{row.mean_logits_abs:.3f}" if is_number(row.mean_logits_abs) else NOT_MEASURED,
        ]
        for row in rows
    ]
    head = ["Against the teacher", "Pictures", "Mean |difference|", "Largest", "Mean |difference| of mean logits"]
    figures = [
        figure_of(
            drawn,
            MATRICES[row.what],
            f"Matrix of the differences of logit correlations, {row.what} against teacher; mean {row.mean_abs:.4f}",
            f"{row.what.capitalize()}, {row.pictures:,} {row.split} pictures: mean |difference| {row.mean_abs:.4f}.",
        )
        for row in rows
        if row.what in MATRICES
    ]
    return _part(title, _quiet(note), table("Differences of correlations", head, lines), _plots(*figures))


def _features(analysis: AnalysisSection, drawn: Drawn) -> list[Child]:
    """Both networks' t-SNE."""
    title, found = "What the features look like", analysis.features
    sentence = el("p", found.sentence) if found.sentence else None
    if not found.networks:
        return _part(title, sentence)
    classes = (
        f"{len(found.classes)} of {found.of_classes} classes"
        if (found.of_classes or 0) > len(found.classes)
        else "all classes"
    )
    near = "; ".join(f"{row.role} {100 * (row.same_class_neighbours or 0):.1f} %" for row in found.networks)
    laid = any(f"features-{row.role}" in drawn for row in found.networks)
    drawing = (
        f" Drawn by t-SNE (van der Maaten and Hinton 2008; perplexity {found.perplexity:g}, from principal components, seed {analysis.seed}), each "
        "network by itself: which points are neighbours means something, distances between groups and the axes do not."
    )
    note = (
        f"What each classifier reads, for the same {found.pictures:,} validation pictures of {classes}.{drawing if laid else ''} Of each picture's "
        f"{found.neighbours} nearest in the features themselves, so many are of its class: {near}."
    )
    figures = (
        figure_of(
            drawn,
            f"features-{row.role}",
            f"t-SNE of the {row.role}'s features, a colour and a shape a class",
            f"{row.model}, {row.width} features",
        )
        for row in found.networks
    )
    return _part(title, sentence, _quiet(note), _plots(*figures))


def _calibration(analysis: AnalysisSection, drawn: Drawn) -> list[Child]:
    """The reliability diagram with its numbers."""
    title, rows = "How far confidence can be believed", analysis.calibration
    if not rows:
        return _part(title, el("p", analysis.logits.sentence))
    lines: list[list[Child]] = [
        [
            row.what,
            [f"{100 * (row.ece or 0):.2f} %", bracket(row.ece_ci95, 100, 2)],
            percent(row.confidence, 2),
            percent(row.top1, 2),
            f"{row.nll:.3f}",
        ]
        for row in rows
    ]
    one = rows[0]
    note = (
        f"Expected calibration error (ECE): the pictures are sorted by confidence, the largest softmax probability, into {one.bins} equal bins; the mean "
        f"of |accuracy \u2212 confidence| over the bins, weighted by their {one.pictures:,} test pictures (Naeini et al. 2015; Guo et al. 2017). The "
        f"interval is a bootstrap of {one.resamples:,} draws of the pictures; bins with few pictures make both too large rather than too small."
    )
    alt = "Accuracy against confidence; expected calibration errors: " + ", ".join(
        f"{row.what} {100 * (row.ece or 0):.2f} %" for row in rows
    )
    shape = "On the dotted diagonal confidence equals accuracy; below it the network is too sure. The larger a mark, the more pictures are behind it."
    numbers = table("Calibration", ["File", "ECE", "Mean confidence", "Top-1", "Negative log-likelihood, nats"], lines)
    aside = el("div", _quiet(note), _quiet(shape), class_="aside")
    return _part(title, numbers, el("div", figure_of(drawn, "calibration", alt), aside, class_="plots"))
