"""Correlations of logits and calibration, against numpy and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from compress.commands.analyze.calibration import BINS, correlation, mean_logits, off_diagonal, reliability

RNG = np.random.default_rng(3)


def test_correlations_are_pearsons() -> None:
    logits = RNG.normal(0, 2, (60, 5)).astype(np.float32) @ RNG.normal(0, 1, (5, 5)).astype(np.float32)
    np.testing.assert_allclose(
        correlation(logits), np.corrcoef(logits.astype(np.float64), rowvar=False), atol=1e-6
    )  # numpy keeps float64 means


def test_a_logit_that_never_changes_is_related_to_none() -> None:
    logits = RNG.normal(0, 1, (20, 3)).astype(np.float32)
    logits[:, 1] = 4
    found = correlation(logits)
    assert (found[1] == 0).all() and found[0, 0] == pytest.approx(1)


def test_mean_logits_have_a_row_a_true_class() -> None:
    found = mean_logits(np.array([[1, 2, 3], [3, 4, 5], [0, 0, 9]], np.float32), np.array([0, 0, 2]))
    np.testing.assert_array_equal(found, [[2, 3, 4], [np.nan] * 3, [0, 0, 9]])
    assert off_diagonal(found).shape == (6,)


def sure(p: float) -> list[float]:
    return [float(np.log(p)), float(np.log(1 - p))]


def test_the_error_is_the_mean_gap_weighted_by_pictures() -> None:
    logits = np.array([sure(0.9)] * 6 + [sure(0.6)] * 2, np.float32)
    labels = np.array([0, 0, 0, 1, 1, 1, 0, 0])  # of the surer six a half is right, of the others all

    found = reliability(logits, labels)

    assert found.ece == pytest.approx((6 * 0.4 + 2 * 0.4) / 8, abs=1e-6)
    assert found.images.sum() == 8 and sorted(found.images)[-2:] == [2, 6] and len(found.images) == BINS
    at = int(found.images.argmax())
    assert found.accuracy[at] == 0.5 and found.mean_confidence[at] == pytest.approx(0.9, abs=1e-6) and at == 13
    assert np.isnan(found.accuracy[0]) and found.top1 == 5 / 8 and found.confidence == pytest.approx(0.825, abs=1e-6)
    assert found.nll == pytest.approx(-(3 * np.log(0.9) + 3 * np.log(0.1) + 2 * np.log(0.6)) / 8, abs=1e-6)


def test_a_calibrated_network_has_a_small_error_and_an_interval_above_zero() -> None:
    p = RNG.uniform(0.5, 1, 4000)
    logits = np.stack([np.log(p), np.log1p(-p)], axis=1).astype(np.float32)
    found = reliability(logits, (RNG.random(4000) > p).astype(np.int64))
    assert found.ece < 0.03 and 0 < found.ece_ci95[0] < found.ece_ci95[1] < 0.06


def test_the_same_seed_draws_the_same_interval() -> None:
    logits, labels = RNG.normal(0, 2, (200, 4)).astype(np.float32), RNG.integers(0, 4, 200)
    assert reliability(logits, labels, seed=1).ece_ci95 == reliability(logits, labels, seed=1).ece_ci95
