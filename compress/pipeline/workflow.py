"""The stages of one recipe, in the order of the sentence that describes them: teacher, distill, strip, convert, tune, quantize, validate, device, report."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compress import __version__
from compress.core.errors import MissingError, StageError
from compress.core.records.base import File
from compress.core.records.deployment import Exported, Measured, ModelFile, Packaged, Tuned, Verified
from compress.core.records.training import Held, Prepared, Trained, TrainingData
from compress.core.store import Store
from compress.data.sources import prepare
from compress.methods import compatibility
from compress.pipeline import float_layer_check
from compress.pipeline.networks import Networks, normalized
from compress.recipe.defaults import resolve, student_train
from compress.recipe.loader import Loaded
from compress.recipe.schema import Distill, Recipe, ResolvedQat, ResolvedSchedule, Student
from compress.report.report_json import Branch, Evidence, model_files
from compress.stages import STAGES, data, distill, strip, teacher
from compress.verdict import majority_baseline, teacher_choice
from compress.verdict.shipped_model import shipping
from export.runtime.conditions import too_many_threads

# convert, quantize and validate need onnx and onnxruntime: imported where they are used, so that `--until strip` runs without.


class Workflow:
    """The stages of one recipe over a store. Methods follow the workflow; each returns records."""

    def __init__(self, loaded: Loaded, settings: Recipe, store: Store, until: str | None) -> None:
        self.loaded, self.settings, self.store = loaded, settings, store
        self.until = until
        self.asked: tuple[str, ...] = ()  # what int8 is made for
        self.base = loaded.path.resolve().parent
        root = settings.data.root
        self.root = (self.base / Path(root).expanduser()).resolve() if root else None
        self.prepared, self.training = self._prepared()
        # in every run, whether or not the data was reused
        self.cautions, self.doubts = (
            self._warned([f"data: {text}" for text in said])
            for said in (self.prepared.cautions, self.prepared.warnings)
        )

    def evidence(self, started: str) -> Evidence | None:
        """Run everything up to the report; None where `--until` ends it."""
        compatibility.check(
            self.loaded, self.settings, classes=len(self.prepared.classes), image_size=self.prepared.image_size
        )
        planned = self.choose()
        settings, store = self.settings, self.store
        if settings.quantize.scheme != "none" and self.until not in STAGES[: STAGES.index("quantize")]:
            self._targets()  # a device out of reach is said before hours of training, and a layer that is not there
            float_layer_check.check(
                self.loaded, settings, classes=len(self.prepared.classes), image_size=self.prepared.image_size
            )
        candidates, selected = self.selected()
        for row in teacher_choice.rows(candidates, selected) if selected.proxies else ():
            store.console.line(teacher_choice.proxy_line(row))
        store.console.line(f"teacher: {selected.reason}")
        guesses = self._warned(majority_baseline.of_teacher(selected.teacher, self.training))
        if self.until == "teacher":
            return None
        with_baseline = settings.distill.baseline and not settings.distill.plain
        student = self._branch(settings.distill, selected.teacher, "")
        baseline = self._branch(Distill(method=("none",)), None, "baseline") if with_baseline else None
        if student is None or (with_baseline and baseline is None):
            return None
        teacher_onnx = self._converted("teacher", selected.teacher, None)
        models = model_files(teacher_onnx, student, baseline)
        if self.until in ("convert", "tune", "quantize"):
            return None
        from compress.stages import validate
        from export.runtime import host

        here, written_by = host(), versions()
        distant = settings.device.distant  # then it answers what `keep: faster` and `sustained_seconds` ask
        narrow = None if distant else too_many_threads(settings.validate_.threads)
        guesses += self._warned([narrow] if narrow else [])
        measured = store.run(
            validate.run,
            settings.validate_.model_copy(update={"sustained_seconds": 0}) if distant else settings.validate_,
            models=models,
            samples=settings.device.samples,
            test=data.test(self.prepared),
            host=here,
            versions=written_by,
            photos=data.photos(settings.data, self.root),
            resize=prepare.store_size(settings.data),
            keep="always" if distant else settings.quantize.keep,
            own=data.photos(settings.data, self.root, settings.device.photos),
        )
        if self.until == "validate":
            return None
        verified = self._verified(measured.bundle, here)
        if self.until == "device":
            return None
        measured = self._settled(measured, verified)
        guesses += self._warned(majority_baseline.of_shipped(measured))
        self._warned(
            [] if distant else list(measured.warnings)
        )  # of another device's files this machine's times say nothing
        packaged = self._packaged(shipping(models, measured))
        if self.until == "package":
            return None
        return Evidence(
            recipe=settings,
            name=self.loaded.name,
            prepared=self.prepared,
            candidates=tuple(candidates),
            selected=selected,
            teacher=selected.teacher,
            student=student,
            baseline=baseline,
            models=models,
            measured=measured,
            verified=verified,
            packaged=packaged,
            seconds=store.seconds,
            reused=tuple(store.reused),
            environment={
                **here,
                "torch": written_by["torch"],
                "onnx": written_by["onnx"],
                "compress": __version__,
                "device": store.device,
            },
            command=self.loaded.command,
            started=started,
            cautions=(*guesses, *self.cautions),
            notices=(*self.doubts, *self.loaded.notices, *self.networks.notices()),
            where=places(self.loaded),
            plan=planned,
        )

    def choose(self) -> dict[str, Any] | None:
        """`student.choose`: from here on the settings name the network that it picked; the plan that it was picked by."""
        if self.settings.student.choose is None:
            return None
        from compress.pipeline.plan import run

        console = self.store.console
        ground = run.ground(self.settings, self.prepared, self.store, versions(), places(self.loaded), self.base)
        picked, content = run.choose(ground, report=console.line)
        console.line(content["choose"]["sentence"])
        student = Student(**picked.model_dump())
        self.settings = resolve(self.loaded.recipe.model_copy(update={"student": student}))
        if not self.store.group.first:
            return content
        return run.keep(content, self.loaded.name, self.loaded.recipe.student, self.store.root)

    def selected(self) -> tuple[list[Trained], teacher_choice.Selected]:
        """The candidates and the one among them that teaches; a single one is not compared with anything."""
        candidates, settings = self.candidates(), self.settings
        if settings.teacher.select != "proxy" or len(candidates) == 1 or settings.distill.plain:
            return candidates, teacher_choice.select(candidates)
        from compress.stages import proxy

        asked, student = settings.teacher.proxy, settings.student.networks[0]
        start, weights = self.networks.weights(student.weights, student.model)
        network = self.networks.network(student)
        train = student_train(settings)
        schedule = ResolvedSchedule(kind="cosine", warmup_epochs=min(train.schedule.warmup_epochs, asked.epochs / 4))
        train = train.model_copy(update={"epochs": asked.epochs, "schedule": schedule, "keep": "last"})
        proxies = tuple(
            self.store.run(
                proxy.run,
                settings.distill.alone(),
                label=label,
                student=network,
                start=start,
                weights=weights,
                teacher=one,
                data=self.training,
                train=train,
                share=asked.share,
            )
            for one, label in zip(candidates, self._labels(), strict=True)
        )
        return candidates, teacher_choice.select(candidates, proxies)

    def _labels(self) -> list[str]:
        """The candidates' names, with a number where one is there twice."""
        models = [one.title for one in self.settings.teacher.candidates]
        return [model if models.count(model) == 1 else f"{model} {number}" for number, model in enumerate(models, 1)]

    def candidates(self) -> list[Trained]:
        """Every teacher candidate, each cached alone: a new student retrains no teacher. What can be wrong is found before anything is trained."""
        labels = self._labels()
        named = [
            self.networks.candidate(one, label)
            for one, label in zip(self.settings.teacher.candidates, labels, strict=True)
        ]
        found: dict[int, Trained] = {}
        for place in sorted(
            range(len(named)), key=lambda place: named[place][0].train is not None
        ):  # finished ones first: they may miss expect_top1
            config, network, weights = named[place]
            read = self.training if config.train is not None else self.training.evaluated
            found[place] = self.store.run(
                teacher.train, config, label=labels[place], network=network, data=read, weights=weights
            )
        return [found[place] for place in range(len(named))]

    def _warned(self, sentences: list[str]) -> list[str]:
        for sentence in sentences:
            self.store.console.warn(sentence)
        return sentences

    @property
    def networks(self) -> Networks:
        """What the settings name; `choose` changes them."""
        return Networks(self.settings, self.prepared, self.base)

    def _prepared(self) -> tuple[Prepared, TrainingData]:
        config = self.settings.data
        config = config.model_copy(update={"root": str(self.root) if self.root else None})
        fingerprint = prepare.fingerprint(config, Path())
        # What does not change the decoded arrays stays out of the key.
        keyed = config.model_copy(
            update={"validation": 0.1, "calibration": 512, "normalize": None, "download": False, "workers": None}
        )
        keyed = keyed.model_copy(update={"color_jitter": None, "rand_augment": None, "shards_at_once": None})
        prepared: Prepared = self.store.run(data.prepare, keyed, fingerprint=fingerprint)
        training = data.training(prepared, config)
        if training.streamed is not None:
            held: Held = self.store.run(
                data.hold, None, label="validation", data=training.evaluated, fingerprint=fingerprint
            )
            training = data.training(prepared, config, held)
        if config.normalize is not None:
            prepared = replace(prepared, normalization=normalized(config.normalize))
        return prepared, training

    def _branch(self, config: Distill, chosen: Trained | None, label: str) -> Branch | None:
        """A student from training to int8; None where `--until` ends it within."""
        settings, store = self.settings, self.store
        student = settings.student.networks[0]
        start, weights = self.networks.weights(student.weights, student.model)
        network = self.networks.network(student)
        own = config.alone()  # other methods' sections are no part of the key
        train = student_train(settings)
        trained = store.run(
            distill.run,
            own,
            label=label,
            student=network,
            start=start,
            weights=weights,
            teacher=chosen,
            data=self.training,
            train=train,
        )
        if self.until == "distill":
            return None
        stripped = store.run(
            strip.run, own, label=label, student=network, teacher=chosen, trained=trained, data=self.training
        )
        if self.until == "strip":
            return None
        fp32 = self._converted(label or "student", stripped.trained, stripped.predictions)
        if settings.quantize.scheme == "none" or self.until == "convert":
            return Branch(trained, stripped, fp32, None)
        from compress.stages import quantize, tune

        told: dict[str, Any] = {
            "model": fp32,
            "data": data.calibration(self.prepared, settings.data),
            "versions": versions(),
        }
        int8 = settings.quantize.model_copy(update={"keep": "always", "target": "auto"})
        targets = self._targets() if label == "" else self._targets()[:1]
        titles = [f"{label or 'student'}{f' {target}' if number else ''}" for number, target in enumerate(targets)]
        tuned: list[Tuned] = []
        if isinstance(int8, ResolvedQat):
            more = {**told, "method": own, "trained": trained, "stripped": stripped, "teacher": chosen, "train": train}
            tuned = [
                store.run(tune.run, int8, label=title, target=target, **more)
                for target, title in zip(targets, titles, strict=True)
            ]
        if self.until == "tune":
            return None
        files = [
            store.run(
                quantize.run, int8, label=title, target=target, **told, **({"tuned": tuned[number]} if tuned else {})
            )
            for number, (target, title) in enumerate(zip(targets, titles, strict=True))
        ]
        static = (
            store.run(quantize.run, int8.static, label="student static", target=targets[0], **told)
            if tuned and not label
            else None
        )
        return Branch(trained, stripped, fp32, files[0], tuple(files[1:]), tuned[0] if tuned else None, static)

    def _converted(self, label: str, model: Trained, recorded: File | None) -> Exported:
        """A network as ONNX."""
        from compress.stages import convert

        settings = self.settings
        config = settings.export.model_copy(update={"fixed_batch": False, "ort": False})  # the package stage's
        told = convert.preprocessing(settings.data.source, prepare.store_size(settings.data), self.prepared.image_size)
        exported: Exported = self.store.run(
            convert.run,
            config,
            label=label,
            model=model,
            recorded=recorded,
            data=self.training.evaluated,
            versions=versions(),
            preprocessing=told,
        )
        return exported

    def _packaged(self, models: tuple[ModelFile, ...]) -> Packaged | None:
        """Further forms of the student's files; None where none is asked for."""
        settings = self.settings
        if not (settings.export.fixed_batch or settings.export.ort):
            return None
        from compress.stages import package

        packaged: Packaged = self.store.run(
            package.run, settings.export, models=models, target=self._targets()[0], versions=versions()
        )
        return packaged

    def _targets(self) -> tuple[str, ...]:
        """What int8 files are made for, the device's first; a distant device is asked once."""
        from compress.stages import quantize

        self.asked = self.asked or quantize.resolve_targets(self.settings.quantize, self.settings.device)
        return self.asked

    def _settled(self, measured: Measured, verified: Verified) -> Measured:
        """`keep: faster` by the times of the device that the recipe names, where `validate` could not ask."""
        config = self.settings.device
        if self.settings.quantize.keep == "always" or self.settings.quantize.scheme == "none" or not config.distant:
            return measured
        from compress.stages import ship_float
        from compress.verdict import device_requirements

        int8, floats = (
            next(row["file"] for row in measured.models if row["role"] == "student" and row["precision"] == kind)
            for kind in ("int8", "fp32")
        )
        kept, because = device_requirements.keeps_int8(int8, floats, verified.rows, config.name)
        self.store.console.line(because)
        if not kept:
            measured = self.store.run(ship_float.run, floats, measured=measured, test=data.test(self.prepared))
        return replace(measured, ships=int8 if kept else floats, ships_because=because)

    def _verified(self, bundle: File, here: dict[str, Any]) -> Verified:
        """The device's answer; of another machine always a new one, because what it is now is only known by asking."""
        from compress.stages import device
        from export.targets import VerifySettings

        config, timing = self.settings.device, self.settings.validate_
        if not config.distant:
            here_verified: Verified = self.store.run(
                device.run, config, bundle=bundle, threads=timing.threads, host=here, versions=versions()
            )
            return here_verified
        asked = VerifySettings(
            name=self.loaded.name, threads=timing.threads, repeats=timing.repeats, sustained=timing.sustained_seconds
        )
        verified: Verified = self.store.anew(device.distant, config, bundle=bundle, settings=asked)
        if verified.failure is not None and self.until == "device":
            raise (MissingError if verified.exit_code == MissingError.exit_code else StageError)(verified.failure)
        return verified


def versions() -> dict[str, str]:
    """What writes and runs ONNX files: another version may write other bytes."""
    return {name: version(name) for name in ("torch", "onnx", "onnxruntime")}


def places(loaded: Loaded) -> dict[str, str]:
    """Where each limit stands in the recipe."""
    return {name: loaded.where(f"require.{name}") for name, limit in loaded.recipe.require if limit is not None}
