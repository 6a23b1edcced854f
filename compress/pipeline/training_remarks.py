"""What a run says of its trainings: lines for the console, and warnings for the report."""

from __future__ import annotations

import numpy as np

from compress.core.records.training import Distilled, Trained, TrainingData
from compress.core.records.warnings import RunWarning
from compress.data import split_of
from compress.pipeline.student_task import StudentTask
from compress.recipe.schema import Require
from compress.verdict import majority_baseline, student_warnings, training_warnings

Remarks = tuple[list[str], list[RunWarning]]


def of_teacher(teacher: Trained, data: TrainingData, require: Require) -> Remarks:
    """Return lines and warnings about the chosen teacher and the images that it was chosen on."""
    title = f"teacher {teacher.network.model}"
    warnings = [
        *majority_baseline.of_teacher(teacher, data),
        *training_warnings.of_training(title, teacher.checks),
    ]
    # A limit on single classes covers what this warns of.
    if not any((require.min_recall, require.min_balanced_accuracy, require.min_macro_f1)):
        warnings += student_warnings.of_imbalance(np.load(data.labels.path), data.classes)
    return training_warnings.floor(title, teacher.checks), warnings


def of_student(student: StudentTask, trained: Distilled, data: TrainingData) -> Remarks:
    """Return lines and warnings about a student's training, or the baseline's."""
    warnings = training_warnings.of_training(student.title, trained.checks)
    if not student.label:
        warnings += student_warnings.of_training(trained.history.path, len(split_of(data)[2]))
    return training_warnings.floor(student.title, trained.checks), warnings
