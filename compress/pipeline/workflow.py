"""The stages of one recipe, in the order of the table in docs/contributing/architecture.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from compress import __version__
from compress.core.records.deployment import Measured, ModelFile, Packaged, Verified
from compress.core.records.training import (
    Distilled,
    Stripped,
    Trained,
)
from compress.core.records.warnings import RunWarning
from compress.core.store import StopAfter, Store
from compress.data.part_overlap import overlap_warnings
from compress.methods import compatibility
from compress.pipeline import float_layer_check, training_remarks, trials
from compress.pipeline.networks import NetworkResolver
from compress.pipeline.prepared_data import absolute, near_duplicates, prepare
from compress.pipeline.student_task import StudentTask
from compress.recipe.class_name_check import check_class_names
from compress.recipe.defaults import resolve, student_train
from compress.recipe.loader import Loaded
from compress.recipe.schema import Distill, Recipe, Student
from compress.report.evidence import Branch, Evidence
from compress.stages.distill import DISTILL
from compress.stages.strip import STRIP
from compress.stages.teacher import TEACHER
from compress.verdict import teacher_choice
from compress.verdict.method_choice import MethodChoice

if TYPE_CHECKING:  # it loads onnx and onnxruntime, which `--until strip` does without
    from compress.pipeline.deployment import Deployment


class Workflow:
    """The stages of one recipe over a store. Methods follow the workflow; each returns records."""

    def __init__(self, loaded: Loaded, settings: Recipe, store: Store) -> None:
        self.loaded, self.settings, self.store = loaded, settings, store
        self.base = loaded.path.resolve().parent
        self.root = absolute(self.base, settings.data.root)
        self.prepared, self.training = prepare(settings.data, self.base, store)
        self.warnings: list[RunWarning] = []
        self.said: set[str] = set()
        self.method_choice: MethodChoice | None = None
        # These are shown in every run, whether or not the data was reused.
        self.warn(replace(warning, text=f"data: {warning}") for warning in self.prepared.run_warnings)
        self.near_duplicates = near_duplicates(self.prepared, self.training, store)
        self.warn(overlap_warnings(self.near_duplicates) if self.near_duplicates else ())

    def run(self, started: str) -> Evidence:
        """Run everything up to the report. Raises StopAfter where the store leaves later stages out (`--until`)."""
        self.check_method()
        plan = self.choose_student()
        self.check_int8()
        candidates, selected = self.teacher()
        self.choose_method(selected.teacher)
        students: list[Branch] = []
        for student in self.students(selected.teacher):
            with suppress(StopAfter):  # the baseline comes as far; what follows raises it again
                trained = self.distill(student)
                stripped = self.strip(student, trained)
                fp32 = self.deployment.convert(student.title, stripped.trained, stripped.predictions)
                tuned = self.deployment.tune(student, trained, stripped, fp32)
                students.append(self.deployment.quantize(student, trained, stripped, fp32, tuned))
        teacher_onnx = self.deployment.convert("teacher", selected.teacher)
        models, measured = self.deployment.validate(teacher_onnx, students)
        verified = self.deployment.device(measured.bundle)
        measured = self.deployment.ship(measured, verified)
        packaged = self.deployment.package(models, measured)
        return self.evidence(started, plan, candidates, selected, students, models, measured, verified, packaged)

    def check_method(self) -> None:
        """Check class names, and that the method takes the recipe's networks. Raises RecipeError or UsageError."""
        prepared = self.prepared
        check_class_names(self.loaded, prepared.classes)
        compatibility.check_pairs(
            self.loaded, self.settings, classes=len(prepared.classes), image_size=prepared.image_size
        )

    def check_int8(self) -> None:
        """Report an unreachable device or a layer that does not exist now rather than after hours of training."""
        if self.settings.quantize.scheme == "none" or not self.store.includes("quantize"):
            return
        _ = self.deployment.int8_targets
        prepared = self.prepared
        float_layer_check.check(
            self.loaded, self.settings, classes=len(prepared.classes), image_size=prepared.image_size
        )

    def choose_student(self) -> dict[str, Any] | None:
        """Let `student.choose` pick the network that the settings name from here on; return the plan behind it."""
        if self.settings.student.choose is None:
            return None
        from compress.pipeline.deployment import versions
        from compress.pipeline.plan import run
        from compress.pipeline.plan.context import build_context

        console = self.store.console
        context = build_context(self.settings, self.prepared, self.store, versions(), places(self.loaded), self.base)
        picked, content = run.choose(context, report=console.line)
        console.line(content["choose"]["sentence"])
        student = Student(**picked.model_dump())
        self.settings = resolve(self.loaded.recipe.model_copy(update={"student": student}))
        if not self.store.group.is_main:
            return content
        return run.keep(content, self.loaded.name, self.loaded.recipe.student, self.store.root)

    def teacher(self) -> tuple[list[Trained], teacher_choice.Selected]:
        """Train or load the candidates, choose one, and report why."""
        candidates, selected = self.selected()
        for row in teacher_choice.rows(candidates, selected) if selected.proxies else ():
            self.store.console.line(teacher_choice.proxy_line(row))
        self.store.console.line(f"teacher: {selected.reason}")
        self._remark(*training_remarks.of_teacher(selected.teacher, self.training, self.settings.require))
        return candidates, selected

    def choose_method(self, teacher: Trained) -> None:
        """Let `distill.method: auto` choose the method that the settings name from here on."""
        if self.settings.distill.method != ("auto",):
            return
        self.store.reach("distill")
        self.method_choice = trials.of_methods(self, teacher)
        distill = self.settings.distill.model_copy(update={"method": (self.method_choice.method,)})
        self.settings = self.settings.model_copy(update={"distill": distill})

    def selected(self) -> tuple[list[Trained], teacher_choice.Selected]:
        """Return the candidates and the one among them that teaches; a single one is not compared with anything."""
        candidates, settings = self.candidates(), self.settings
        if settings.teacher.select != "proxy" or len(candidates) == 1 or settings.distill.plain:
            return candidates, teacher_choice.select(candidates, metric=settings.train.metric)
        proxies = trials.of_teachers(self, candidates, self._labels())
        return candidates, teacher_choice.select(candidates, proxies)

    def candidates(self) -> list[Trained]:
        """Return every teacher candidate, each cached alone, so that a new student retrains no teacher.

        All are looked up before any is trained, and finished ones come first, because they may miss `expect_top1`.
        """
        labels = self._labels()
        named = [
            self.networks.candidate(one, label)
            for one, label in zip(self.settings.teacher.candidates, labels, strict=True)
        ]
        compared = {"metric": self.settings.train.metric} if self.settings.train.metric and len(named) > 1 else {}
        found: dict[int, Trained] = {}
        for place in sorted(range(len(named)), key=lambda place: named[place][0].train is not None):
            config, network, weights = named[place]
            read = self.training if config.train is not None else self.training.evaluated
            more = self.networks.foreign_inputs(config) | compared
            one: Trained = self.store.run(
                TEACHER, config, label=labels[place], network=network, data=read, weights=weights, **more
            )
            found[place] = one
            if weights is not None and config.weights != "embedded":
                self.say_once(f"teacher {labels[place]}: {one.origin}")
        return [found[place] for place in range(len(named))]

    def _labels(self) -> list[str]:
        """Return the candidates' names, with a number where one occurs twice."""
        models = [one.title for one in self.settings.teacher.candidates]
        return [model if models.count(model) == 1 else f"{model} {number}" for number, model in enumerate(models, 1)]

    def students(self, teacher: Trained | None) -> Iterator[StudentTask]:
        """Yield the recipe's student, then the baseline without a teacher where one is asked for."""
        distill, student = self.settings.distill, self.settings.student.networks[0]
        start, weights, network, taken = self.networks.start(student)
        if taken:
            self.say_once(f"student {student.model}: from {student.weights}: {taken}")
        yield StudentTask("", network, start, weights, distill.alone(), teacher)
        if distill.baseline and not distill.plain:
            yield StudentTask("baseline", network, start, weights, Distill(method=("none",)).alone(), None)

    def distill(self, student: StudentTask) -> Distilled:
        """Train a student by its method."""
        trained: Distilled = self.store.run(
            DISTILL,
            student.method,
            label=student.label,
            student=student.network,
            start=student.start,
            weights=student.weights,
            teacher=student.teacher,
            data=self.training,
            train=student_train(self.settings),
        )
        self._remark(*training_remarks.of_student(student, trained, self.training))
        return trained

    def _remark(self, lines: Iterable[str], warnings: list[RunWarning]) -> None:
        for line in lines:
            self.store.console.line(line)
        self.warn(warnings)

    def strip(self, student: StudentTask, trained: Distilled) -> Stripped:
        """Drop the method's own modules from a trained student."""
        stripped: Stripped = self.store.run(
            STRIP,
            student.method,
            label=student.label,
            student=student.network,
            teacher=student.teacher,
            trained=trained,
            data=self.training,
        )
        return stripped

    @cached_property
    def deployment(self) -> Deployment:
        """The stages behind `strip`, which load onnx and onnxruntime. Raises StopAfter if `--until` leaves all out."""
        self.store.reach("convert")
        from compress.pipeline.deployment import Deployment

        return Deployment(self)

    def evidence(
        self,
        started: str,
        plan: dict[str, Any] | None,
        candidates: list[Trained],
        selected: teacher_choice.Selected,
        students: list[Branch],
        models: tuple[ModelFile, ...],
        measured: Measured,
        verified: Verified,
        packaged: Packaged | None,
    ) -> Evidence:
        """Gather what the report is made of."""
        self.store.reach("report")
        store, deployment = self.store, self.deployment
        return Evidence(
            recipe=self.settings,
            name=self.loaded.name,
            prepared=self.prepared,
            candidates=tuple(candidates),
            selected=selected,
            teacher=selected.teacher,
            student=students[0],
            baseline=students[1] if len(students) > 1 else None,
            models=models,
            measured=measured,
            verified=verified,
            packaged=packaged,
            seconds=store.seconds,
            reused=tuple(store.reused),
            environment={
                **deployment.host,
                "torch": deployment.versions["torch"],
                "onnx": deployment.versions["onnx"],
                "compress": __version__,
                "device": store.device,
            },
            command=self.loaded.command,
            started=started,
            warnings=(*self.warnings, *self.loaded.warnings, *self.networks.warnings()),
            where=places(self.loaded),
            plan=plan,
            near_duplicates=self.near_duplicates,
            method_choice=self.method_choice,
        )

    def say_once(self, text: str) -> None:
        """Print a note in every run, also where its stage was reused, and not again in this run."""
        if text not in self.said:
            self.said.add(text)
            self.store.console.notice(text)

    def warn(self, warnings: Iterable[RunWarning]) -> None:
        """Print warnings and keep them for the report."""
        for warning in warnings:
            self.store.console.warn(warning.text)
            self.warnings.append(warning)

    @property
    def networks(self) -> NetworkResolver:
        """The networks that the settings name; `choose_student` changes them."""
        return NetworkResolver(self.settings, self.prepared, self.base)


def places(loaded: Loaded) -> dict[str, str]:
    """Return where each limit stands in the recipe: requirement -> `path:line:column`."""
    return {name: loaded.where(f"require.{name}") for name, limit in loaded.recipe.require if limit is not None}
