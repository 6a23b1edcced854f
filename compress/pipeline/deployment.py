"""The stages behind `strip`, from a trained network to the device's answer. They need onnx and onnxruntime."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from compress.core.errors import MissingError, StageError
from compress.core.records.base import File
from compress.core.records.deployment import Exported, Measured, ModelFile, Packaged, Tuned, Verified
from compress.core.records.training import CalibrationData, Distilled, Stripped, Trained
from compress.core.records.warnings import RunWarning
from compress.data.sources import inspection
from compress.recipe.defaults import student_train
from compress.recipe.schema import Quantize, ResolvedQat
from compress.report.evidence import Branch, model_files
from compress.stages import data
from compress.stages.convert import CONVERT, preprocessing
from compress.stages.device import DEVICE, DISTANT_DEVICE
from compress.stages.package import PACKAGE
from compress.stages.quantize import QUANTIZE, resolve_targets
from compress.stages.ship_float import SHIP_FLOAT
from compress.stages.tune import TUNE
from compress.stages.validate import VALIDATE
from compress.verdict import device_requirements, majority_baseline, student_warnings
from compress.verdict.shipped_model import shipping
from export.runtime import host
from export.runtime.conditions import too_many_threads
from export.targets import VerifySettings

if TYPE_CHECKING:
    from compress.pipeline.student_task import StudentTask
    from compress.pipeline.workflow import Workflow


class Deployment:
    """The later half of a workflow, whose settings, data and store it shares."""

    def __init__(self, workflow: Workflow) -> None:
        self.workflow, self.settings, self.store = workflow, workflow.settings, workflow.store
        self.versions = versions()

    @cached_property
    def host(self) -> dict[str, Any]:
        """This machine; part of the keys of what is measured on it."""
        return host()

    @cached_property
    def int8_targets(self) -> tuple[str, ...]:
        """The targets that int8 files are made for, the device's first; another device is asked once."""
        return resolve_targets(self.settings.quantize, self.settings.device)

    def convert(self, label: str, model: Trained, recorded: File | None = None) -> Exported:
        """Write a network as ONNX. `recorded`: a student's predictions from the strip stage."""
        settings, prepared = self.settings, self.workflow.prepared
        config = settings.export.model_copy(update={"fixed_batch": False, "ort": False})  # the package stage's
        exported: Exported = self.store.run(
            CONVERT,
            config,
            label=label,
            model=model,
            recorded=recorded,
            data=self.workflow.training.evaluated,
            versions=self.versions,
            preprocessing=preprocessing(
                settings.data.source,
                inspection.store_size(settings.data),
                prepared.image_size,
                prepared.value_range,
            ),
        )
        return exported

    def tune(self, student: StudentTask, trained: Distilled, stripped: Stripped, fp32: Exported) -> tuple[Tuned, ...]:
        """Train a student further as its int8 files will compute it; nothing without `scheme: qat`."""
        int8 = self._int8
        if not isinstance(int8, ResolvedQat):
            return ()
        self.store.reach("tune")
        return tuple(
            self.store.run(
                TUNE,
                int8,
                label=title,
                target=target,
                model=fp32,
                data=self._calibration,
                versions=self.versions,
                method=student.method,
                trained=trained,
                stripped=stripped,
                teacher=student.teacher,
                train=student_train(self.settings),
            )
            for target, title in self._int8_files(student)
        )

    def quantize(
        self,
        student: StudentTask,
        trained: Distilled,
        stripped: Stripped,
        fp32: Exported,
        tuned: tuple[Tuned, ...],
    ) -> Branch:
        """Write a student's int8 files, of a tuned one also the file without tuning; nothing with `scheme: none`."""
        if self.settings.quantize.scheme == "none":
            return Branch(trained, stripped, fp32, None)
        self.store.reach("quantize")
        told: dict[str, Any] = {"model": fp32, "data": self._calibration, "versions": self.versions}
        files = []
        for number, (target, title) in enumerate(self._int8_files(student)):
            more = {"tuned": tuned[number]} if tuned else {}
            files.append(self.store.run(QUANTIZE, self._int8, label=title, target=target, **told, **more))
        static = None
        if tuned and not student.label:
            target = self.int8_targets[0]
            static = self.store.run(QUANTIZE, self._int8.static, label="student static", target=target, **told)
        return Branch(trained, stripped, fp32, files[0], tuple(files[1:]), tuned[0] if tuned else None, static)

    @property
    def _int8(self) -> Quantize:
        """The settings of int8 without those that change no file."""
        return self.settings.quantize.model_copy(update={"keep": "always", "target": "auto"})

    @property
    def _calibration(self) -> CalibrationData:
        return data.calibration(self.workflow.prepared, self.settings.data)

    def _int8_files(self, student: StudentTask) -> list[tuple[str, str]]:
        """Return a student's int8 files as (target, title); the baseline has one, for the first target."""
        targets = self.int8_targets[:1] if student.label else self.int8_targets
        return [(target, f"{student.title}{f' {target}' if number else ''}") for number, target in enumerate(targets)]

    def validate(self, teacher: Exported, students: list[Branch]) -> tuple[tuple[ModelFile, ...], Measured]:
        """Measure every file on the test split. A remote device times `keep: faster` and `sustained_seconds` itself."""
        self.store.reach("validate")
        settings, workflow = self.settings, self.workflow
        models = model_files(teacher, students[0], students[1] if len(students) > 1 else None)
        distant = settings.device.distant
        narrow = None if distant else too_many_threads(settings.validate_.threads)
        workflow.warn([RunWarning(narrow, affects_verdict=True)] if narrow else [])
        drawn: dict[str, Any] = {} if settings.bundles_images else {"synthetic": True}
        measured: Measured = self.store.run(
            VALIDATE,
            settings.validate_.model_copy(update={"sustained_seconds": 0}) if distant else settings.validate_,
            models=models,
            samples=settings.device.samples,
            test=data.test(workflow.prepared),
            host=self.host,
            versions=self.versions,
            photos=data.photos(settings.data, workflow.root),
            resize=inspection.store_size(settings.data),
            keep="always" if distant else settings.quantize.keep,
            own=data.photos(settings.data, workflow.root, settings.device.photos if settings.bundles_images else 0),
            **drawn,
        )
        return models, measured

    def device(self, bundle: File) -> Verified:
        """Verify the bundle on the device. Another machine is asked in every run: its answer cannot be cached."""
        config, timing = self.settings.device, self.settings.validate_
        verified: Verified
        if not config.distant:
            verified = self.store.run(
                DEVICE, config, bundle=bundle, threads=timing.threads, host=self.host, versions=self.versions
            )
            return verified
        asked = VerifySettings(
            name=self.workflow.loaded.name,
            threads=timing.threads,
            repeats=timing.repeats,
            sustained=timing.sustained_seconds,
        )
        verified = self.store.run_uncached(DISTANT_DEVICE, config, bundle=bundle, settings=asked)
        if verified.failure is not None and not self.store.includes("package"):
            raise (MissingError if verified.exit_code == MissingError.exit_code else StageError)(verified.failure)
        return verified

    def ship(self, measured: Measured, verified: Verified) -> Measured:
        """Decide which file ships, by the device's times if `validate` could not ask it, and warn about the numbers."""
        self.store.reach("package")
        workflow, measured = self.workflow, self._keep_faster(measured, verified)
        workflow.warn([*majority_baseline.of_shipped(measured), *student_warnings.of_shipped(measured)])
        if not self.settings.device.distant:  # this machine's times say nothing about another device's files
            for text in measured.warnings:
                self.store.console.warn(text)
        return measured

    def _keep_faster(self, measured: Measured, verified: Verified) -> Measured:
        """Apply `keep: faster` by the times of a distant device."""
        config, quantize = self.settings.device, self.settings.quantize
        if quantize.keep == "always" or quantize.scheme == "none" or not config.distant:
            return measured
        int8, floats = (
            next(row["file"] for row in measured.models if row["role"] == "student" and row["precision"] == kind)
            for kind in ("int8", "fp32")
        )
        kept, because = device_requirements.keeps_int8(int8, floats, verified.rows, config.name)
        self.store.console.line(because)
        if not kept:
            measured = self.store.run(SHIP_FLOAT, floats, measured=measured, test=data.test(self.workflow.prepared))
        return replace(measured, ships=int8 if kept else floats, ships_because=because)

    def package(self, models: tuple[ModelFile, ...], measured: Measured) -> Packaged | None:
        """Write further forms of the student's files; None where the recipe asks for none."""
        export = self.settings.export
        if not (export.fixed_batch or export.ort):
            return None
        packaged: Packaged = self.store.run(
            PACKAGE,
            export,
            models=shipping(models, measured),
            target=self.int8_targets[0],
            versions=self.versions,
        )
        return packaged


def versions() -> dict[str, str]:
    """Return the versions of what writes and runs ONNX files: another version may write other bytes."""
    return {name: version(name) for name in ("torch", "onnx", "onnxruntime")}
