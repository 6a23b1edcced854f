"""The workflow, in the order of the sentence that describes it: teacher, distill, strip, convert, quantize, validate, device, report."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from compress import compatible, distributed, recipe, selection, verdict
from compress.console import Console
from compress.data import sources
from compress.errors import MissingError, StageError, UsageError
from compress.models import catalog, own
from compress.recipe import Loaded
from compress.results import Exported, File, Measured, ModelFile, Network, Normalization, Packaged, Prepared, Trained, TrainingData, Tuned, Verified, sha256_of
from compress.schema import Candidate, Distill, Normalize, Recipe, Schedule, Student, Train
from compress.stages import data, distill, report, strip, teacher
from compress.store import Store

# convert, quantize and validate need onnx and onnxruntime: imported where they are used, so that `--until strip` runs without.

STAGES = ("teacher", "distill", "strip", "convert", "tune", "quantize", "validate", "device", "package", "report")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: 0, 5 or 6; the content of report.json; the run folder. `report` is None where `--until` stopped it earlier."""

    exit_code: int
    report: dict[str, Any] | None
    run_folder: Path | None


def run(loaded: Loaded, *, artifacts: Path, device: str, until: str | None, force: tuple[str, ...], console: Console) -> Outcome:
    """Run a recipe from teacher to verdict; every stage that is whole already is reused. Under torchrun the processes share the trainings."""
    with distributed.joined(resolve_device(device)) as (group, own):
        return _run(loaded, Store(artifacts, own, console if group.first else Console(silent=True), force, group), until)


def _run(loaded: Loaded, store: Store, until: str | None) -> Outcome:
    now = datetime.now(UTC)
    settings = recipe.resolve(loaded.recipe)
    artifacts, console = store.root, store.console
    work = Workflow(loaded, settings, store, until)
    for notice in loaded.notices:
        console.notice(notice)
    evidence = work.evidence(started=f"{now:%Y-%m-%d %H:%M:%S} UTC")
    if evidence is None:
        console.line(f"stopped after {until}, as asked; run again without --until to go on")
        return Outcome(0, None, None)
    if not store.group.first:
        return Outcome(0, None, None)
    folder = _new_folder(artifacts / "runs" / loaded.name, now, sha256_of(settings)[:8])
    shutil.copyfile(loaded.path, folder / "recipe.yaml")
    (folder / "resolved.yaml").write_text(recipe.dump(work.settings))
    content = report.write(evidence, folder)
    console.summary(content, folder)
    console.save_log(folder / "log.txt")
    report.mark_latest(folder)
    if evidence.verified.failure is None:
        return Outcome(verdict.exit_code(content["status"]), content, folder)
    console.warn(f"{evidence.verified.failure}; the report is written without it; to go on: {_verify_command(loaded.name, artifacts)}")
    return Outcome(evidence.verified.exit_code, content, folder)


def _verify_command(name: str, artifacts: Path) -> str:
    """What asks the recipe's device once more."""
    return f"compress verify {name}" + ("" if artifacts == Path("artifacts") else f" --artifacts {shlex.quote(str(artifacts))}")


def _new_folder(parent: Path, now: datetime, key: str) -> Path:
    """A run folder of its own: of two runs that begin in the same second one is a second later."""
    while True:
        folder = parent / f"{now:%Y%m%dT%H%M%SZ}-{key}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            now += timedelta(seconds=1)
        else:
            return folder


def plan(loaded: Loaded, *, artifacts: Path, neighbours: int, force: bool, console: Console) -> Outcome:
    """What to expect before any training: 0, 5 where the recipe's own student fails a limit that can be judged, or 6."""
    from compress import plan

    settings = recipe.resolve(loaded.recipe)
    store = Store(artifacts, "cpu", console, plan.STAGES if force else ())
    prepared = None
    try:
        prepared = Workflow(loaded, settings, store, None).prepared
    except MissingError as error:
        console.notice(f"data: {error}")
        console.notice("planned with noise instead of pictures, which changes no time and no size")
    classes, size = (len(prepared.classes), prepared.image_size) if prepared else (10, settings.data.image_size or 32)
    for sentence in compatible.check(loaded, settings, classes=classes, image_size=size):
        console.notice(f"this plan times the student without what the method adds to it: {sentence}")
    store.console = Console(quiet=True)  # the table says what is done
    content = plan.run(plan.ground(settings, prepared, store, _versions(), _places(loaded)), neighbours=neighbours, report=console.line)
    for sentence in content["sentences"]:
        console.line(sentence)
    for row in content["requirements"]:
        where = "" if row["verdict"] == "passed" else f" ({row['where']})"
        console.line(f"{row['verdict']:<11}{row['name']}: {row['sentence']}{where}", always=True)
    content = plan.keep(content, loaded.name, loaded.recipe.student, artifacts)
    return Outcome(verdict.exit_code(content["status"]), content, None)


def teachers(loaded: Loaded, *, artifacts: Path, device: str, console: Console) -> list[dict[str, Any]]:
    """The teacher-selection table alone: one row a candidate."""
    work = Workflow(loaded, recipe.resolve(loaded.recipe), Store(artifacts, resolve_device(device), console), "teacher")
    if work.settings.teacher.select == "proxy":
        work.choose()
    candidates, selected = work.selected()
    console.line(f"teacher: {selected.reason}")
    return selection.rows(candidates, selected)


def resolve_device(name: str) -> str:
    """auto | cpu | cuda | cuda:N | mps -> what torch calls it. Raises MissingError where it is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise MissingError("--device cuda: torch sees no CUDA device here; see it with: compress doctor")
    if name == "mps" and not torch.backends.mps.is_available():
        raise MissingError("--device mps: torch sees no Metal device here; see it with: compress doctor")
    try:
        torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps") from None
    return name


class Workflow:
    """The stages of one recipe over a store. Methods follow the workflow; each returns records."""

    def __init__(self, loaded: Loaded, settings: Recipe, store: Store, until: str | None) -> None:
        self.loaded, self.settings, self.store = loaded, settings, store
        self.until = until
        self.asked: tuple[str, ...] = ()  # what int8 is made for
        self.base = loaded.path.resolve().parent
        root = settings.data.root
        self.root = (self.base / Path(root).expanduser()).resolve() if root else None
        self.prepared = self._prepared()
        self.training: TrainingData = data.training(self.prepared, settings.data)

    def evidence(self, started: str) -> report.Evidence | None:
        """Run everything up to the report; None where `--until` ends it."""
        compatible.check(self.loaded, self.settings, classes=len(self.prepared.classes), image_size=self.prepared.image_size)
        planned = self.choose()
        settings, store = self.settings, self.store
        if settings.quantize.scheme != "none" and self.until not in STAGES[: STAGES.index("quantize")]:
            self._targets()  # a device out of reach is said before hours of training
        candidates, selected = self.selected()
        for row in selection.rows(candidates, selected) if selected.proxies else ():
            store.console.line(selection.proxy_line(row))
        store.console.line(f"teacher: {selected.reason}")
        if self.until == "teacher":
            return None
        with_baseline = settings.distill.baseline and not settings.distill.plain
        student = self._branch(settings.distill, selected.teacher, "")
        baseline = self._branch(Distill(method=("none",)), None, "baseline") if with_baseline else None
        if student is None or (with_baseline and baseline is None):
            return None
        teacher_onnx = self._converted("teacher", selected.teacher, None)
        models = _model_files(teacher_onnx, student, baseline)
        if self.until in ("convert", "tune", "quantize"):
            return None
        from compress.stages import validate
        from export.runtime import host

        here, versions = host(), _versions()
        distant = settings.device.distant  # then it answers what `keep: faster` and `sustained_seconds` ask
        measured = store.run(
            validate.run, settings.validate_.model_copy(update={"sustained_seconds": 0}) if distant else settings.validate_,
            models=models, samples=settings.device.samples, test=data.test(self.prepared), host=here, versions=versions,
            photos=data.photos(settings.data, self.root), resize=sources.store_size(settings.data), keep="always" if distant else settings.quantize.keep,
            own=data.photos(settings.data, self.root, settings.device.photos),
        )  # fmt: skip
        if self.until == "validate":
            return None
        verified = self._verified(measured.bundle, here)
        if self.until == "device":
            return None
        measured = self._settled(measured, verified)
        packaged = self._packaged(report.shipping(models, measured))
        if self.until == "package":
            return None
        return report.Evidence(
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
            environment={**here, "torch": versions["torch"], "onnx": versions["onnx"], "compress": version("compress"), "device": store.device},
            command=f"compress run {self.loaded.path}",
            started=started,
            notices=(*self.loaded.notices, *self._data_notices()),
            where=_places(self.loaded),
            plan=planned,
        )

    def choose(self) -> dict[str, Any] | None:
        """`student.choose`: from here on the settings name the network that it picked; the plan that it was picked by."""
        if self.settings.student.choose is None:
            return None
        from compress import plan

        console = self.store.console
        ground = plan.ground(self.settings, self.prepared, self.store, _versions(), _places(self.loaded))
        picked, content = plan.choose(ground, report=console.line)
        console.line(content["choose"]["sentence"])
        student = Student(model=picked.model, width=picked.width, weights=picked.weights)
        self.settings = recipe.resolve(self.loaded.recipe.model_copy(update={"student": student}))
        if not self.store.group.first:
            return content
        return plan.keep(content, self.loaded.name, self.loaded.recipe.student, self.store.root)

    def selected(self) -> tuple[list[Trained], selection.Selected]:
        """The candidates and the one among them that teaches; a single one is not compared with anything."""
        candidates, settings = self.candidates(), self.settings
        if settings.teacher.select != "proxy" or len(candidates) == 1 or settings.distill.plain:
            return candidates, selection.select(candidates)
        from compress.stages import proxy

        asked, student = settings.teacher.proxy, settings.student.networks[0]
        start, weights = self._weights(student.weights, student.model)
        network = self._network(student.model, student.width, student.weights, None)
        schedule = Schedule(kind="cosine", warmup_epochs=min(settings.train.schedule.warmup_epochs or 0.0, asked.epochs / 4))
        train = settings.train.model_copy(update={"epochs": asked.epochs, "schedule": schedule, "keep": "last"})
        proxies = tuple(
            self.store.run(
                proxy.run, settings.distill.alone(), label=label, student=network, start=start, weights=weights, teacher=one, data=self.training,
                train=train, share=asked.share,
            )
            for one, label in zip(candidates, self._labels(), strict=True)
        )  # fmt: skip
        return candidates, selection.select(candidates, proxies)

    def _labels(self) -> list[str]:
        """The candidates' names, with a number where one is there twice."""
        models = [one.title for one in self.settings.teacher.candidates]
        return [model if models.count(model) == 1 else f"{model} {number}" for number, model in enumerate(models, 1)]

    def candidates(self) -> list[Trained]:
        """Every teacher candidate, each cached alone: a new student retrains no teacher."""
        return [self._candidate(one, label) for one, label in zip(self.settings.teacher.candidates, self._labels(), strict=True)]

    def _prepared(self) -> Prepared:
        config = self.settings.data
        config = config.model_copy(update={"root": str(self.root) if self.root else None})
        fingerprint = sources.fingerprint(config, Path())
        # What does not change the decoded arrays stays out of the key.
        keyed = config.model_copy(update={"validation": 0.1, "calibration": 512, "normalize": None, "download": False})
        prepared: Prepared = self.store.run(data.prepare, keyed, fingerprint=fingerprint)
        if config.normalize is not None:
            prepared = replace(prepared, normalization=_normalization(config.normalize))
        return prepared

    def _data_notices(self) -> list[str]:
        skipped, settings = self.prepared.unreadable, self.settings
        notices = [f"{len(skipped)} unreadable pictures were skipped, the first: {skipped[0].path} ({skipped[0].reason})"] if skipped else []
        weights = [(one.model, one.weights, one.normalize) for one in settings.teacher.candidates if one.onnx is None]
        for one in settings.teacher.candidates:
            if one.onnx is not None and one.normalize is None and settings.data.normalize is None:
                notices.append(f"{one.title}: it says no normalisation, so the data's is used; set `normalize` if it was trained with another")
        weights += [(one.model, one.weights, None) for one in settings.student.networks]
        for model, key, normalize in weights:
            known = catalog.info(model).family == "photos"  # published as files, all with one normalisation
            if is_file(key) and normalize is None and settings.data.normalize is None and not known:
                notices.append(f"{model}: its checkpoint says no normalisation, so the data's is used; set `normalize` if it was trained with another")
        return notices

    def _network(self, model: str, width: float | None, weights: str, normalize: Normalize | None) -> Network:
        """A network carries its own normalisation: the recipe's word for it, else that of its published weights, else the data's."""
        asked, info = normalize or self.settings.data.normalize, catalog.info(model)
        published = weights in info.pretrained or (info.family == "photos" and is_file(weights))
        if asked is not None:
            normalization = _normalization(asked)
        elif published and info.normalization is not None:
            normalization = Normalization(*info.normalization)
        else:
            normalization = self.prepared.normalization
        source = own.source(model) if catalog.is_own(model) else None
        return Network(model, width, len(self.prepared.classes), self.prepared.image_size, normalization, source=source)

    def _weights(self, key: str, model: str) -> tuple[str, File | None]:
        """A `weights` key -> (what the stage's config says, the file where it is one). Raises MissingError."""
        if key == "embedded":
            return key, File.of(teacher.embedded_weights(model))
        if key.startswith(("http://", "https://")):
            raise MissingError(f"weights: {key} is not downloaded by a run; fetch it first and name the file: curl -LO {key}")
        if is_file(key):
            path = self.base / Path(key).expanduser()
            if not path.is_file():
                raise MissingError(f"weights: {path} does not exist; put the checkpoint there, or see it with: ls {path.parent}")
            return "file", File.of(path)
        return key, None

    def _candidate(self, candidate: Candidate, label: str) -> Trained:
        weights: File | None
        if candidate.onnx is not None:
            path = self.base / Path(candidate.onnx).expanduser()
            if not path.is_file():
                raise MissingError(f"onnx: {path} does not exist; put the file there, or see it with: ls {path.parent}")
            asked = candidate.normalize or self.settings.data.normalize
            normalization = _normalization(asked) if asked else self.prepared.normalization
            key, weights = "none", File.of(path)
            network = Network(candidate.title, None, len(self.prepared.classes), self.prepared.image_size, normalization, black_box=True)
        else:
            key, weights = self._weights(candidate.weights, candidate.model)
            network = self._network(candidate.model, candidate.width, candidate.weights, candidate.normalize)
        order = self._order(candidate.classes, label)
        network = replace(
            network, own_size=candidate.image_size, channels=candidate.channels, order=order, outputs=len(candidate.classes) if candidate.classes else None
        )
        result: Trained = self.store.run(
            teacher.train, candidate.model_copy(update={"weights": key}), label=label, network=network, data=self.training, weights=weights
        )
        return result

    def _order(self, names: tuple[str, ...] | None, label: str) -> tuple[int, ...] | None:
        """Where each of the data's classes stands among a candidate's; None: the same classes in the same order. Raises UsageError."""
        wanted = self.prepared.classes
        if names is None or names == wanted:
            return None
        missing = [name for name in wanted if name not in names]
        if missing:
            raise UsageError(
                f"teacher {label}: classes: it has no {missing[0]!r}{f' and {len(missing) - 1} others' if missing[1:] else ''}; the data's classes are "
                f"{', '.join(wanted[:5])}{', ...' if wanted[5:] else ''}"
            )
        return tuple(names.index(name) for name in wanted)

    def _branch(self, config: Distill, chosen: Trained | None, label: str) -> report.Branch | None:
        """A student from training to int8; None where `--until` ends it within."""
        settings, store = self.settings, self.store
        student = settings.student.networks[0]
        start, weights = self._weights(student.weights, student.model)
        network = self._network(student.model, student.width, student.weights, None)
        own = config.alone()  # other methods' sections are no part of the key
        train: Train = settings.train
        trained = store.run(
            distill.run, own, label=label, student=network, start=start, weights=weights, teacher=chosen, data=self.training, train=train
        )
        if self.until == "distill":
            return None
        stripped = store.run(strip.run, own, label=label, student=network, teacher=chosen, trained=trained, data=self.training)
        if self.until == "strip":
            return None
        fp32 = self._converted(label or "student", stripped.trained, stripped.predictions)
        if settings.quantize.scheme == "none" or self.until == "convert":
            return report.Branch(trained, stripped, fp32, None)
        from compress.stages import quantize, tune

        told: dict[str, Any] = {"model": fp32, "data": data.calibration(self.prepared, settings.data), "versions": _versions()}
        int8 = settings.quantize.model_copy(update={"keep": "always", "target": "auto"})
        targets = self._targets() if label == "" else self._targets()[:1]
        titles = [f"{label or 'student'}{f' {target}' if number else ''}" for number, target in enumerate(targets)]
        tuned: list[Tuned] = []
        if int8.scheme == "qat":
            more = {**told, "method": own, "trained": trained, "stripped": stripped, "teacher": chosen, "train": train}
            tuned = [store.run(tune.run, int8, label=title, target=target, **more) for target, title in zip(targets, titles, strict=True)]
        if self.until == "tune":
            return None
        files = [
            store.run(quantize.run, int8, label=title, target=target, **told, **({"tuned": tuned[number]} if tuned else {}))
            for number, (target, title) in enumerate(zip(targets, titles, strict=True))
        ]
        static = store.run(quantize.run, int8.static, label="student static", target=targets[0], **told) if tuned and not label else None
        return report.Branch(trained, stripped, fp32, files[0], tuple(files[1:]), tuned[0] if tuned else None, static)

    def _converted(self, label: str, model: Trained, recorded: File | None) -> Exported:
        """A network as ONNX."""
        from compress.stages import convert

        settings = self.settings
        config = settings.export.model_copy(update={"fixed_batch": False, "ort": False})  # the package stage's
        told = convert.preprocessing(settings.data.source, sources.store_size(settings.data), self.prepared.image_size)
        exported: Exported = self.store.run(
            convert.run, config, label=label, model=model, recorded=recorded, data=self.training, versions=_versions(), preprocessing=told
        )
        return exported

    def _packaged(self, models: tuple[ModelFile, ...]) -> Packaged | None:
        """Further forms of the student's files; None where none is asked for."""
        settings = self.settings
        if not (settings.export.fixed_batch or settings.export.ort):
            return None
        from compress.stages import package

        packaged: Packaged = self.store.run(package.run, settings.export, models=models, target=self._targets()[0], versions=_versions())
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
        from compress import device_limits
        from compress.stages import settle

        int8, floats = (next(row["file"] for row in measured.models if row["role"] == "student" and row["precision"] == kind) for kind in ("int8", "fp32"))
        kept, because = device_limits.keeps_int8(int8, floats, verified.rows, config.name)
        self.store.console.line(because)
        if not kept:
            measured = self.store.run(settle.run, floats, measured=measured, test=data.test(self.prepared))
        return replace(measured, ships=int8 if kept else floats, ships_because=because)

    def _verified(self, bundle: File, here: dict[str, Any]) -> Verified:
        """The device's answer; of another machine always a new one, because what it is now is only known by asking."""
        from compress.stages import device
        from export.targets import Settings

        config, timing = self.settings.device, self.settings.validate_
        if not config.distant:
            here_verified: Verified = self.store.run(device.run, config, bundle=bundle, threads=timing.threads, host=here, versions=_versions())
            return here_verified
        asked = Settings(name=self.loaded.name, threads=timing.threads, repeats=timing.repeats, sustained=timing.sustained_seconds)
        verified: Verified = self.store.anew(device.distant, config, bundle=bundle, settings=asked)
        if verified.failure is not None and self.until == "device":
            raise (MissingError if verified.exit_code == MissingError.exit_code else StageError)(verified.failure)
        return verified


def _versions() -> dict[str, str]:
    """What writes and runs ONNX files: another version may write other bytes."""
    return {name: version(name) for name in ("torch", "onnx", "onnxruntime")}


def is_file(weights: str) -> bool:
    """Whether a `weights` key names a checkpoint file."""
    return Path(weights).suffix in catalog.CHECKPOINT_SUFFIXES


def _places(loaded: Loaded) -> dict[str, str]:
    """Where each limit stands in the recipe."""
    return {name: loaded.where(f"require.{name}") for name, limit in loaded.recipe.require if limit is not None}


def _normalization(section: Normalize) -> Normalization:
    return Normalization(section.mean, section.std)


def _model_files(teacher_onnx: Any, student: report.Branch, baseline: report.Branch | None) -> tuple[ModelFile, ...]:
    """What validate measures, the teacher first; names are those in the run folder."""
    files = [ModelFile("teacher.onnx", "teacher", "fp32", teacher_onnx.file, None, teacher_onnx.max_abs_diff, teacher_onnx.contract)]
    for role, branch in (("student", student), ("baseline", baseline)):
        if branch is None:
            continue
        files.append(ModelFile(f"{role}.fp32.onnx", role, "fp32", branch.fp32.file, None, branch.fp32.max_abs_diff))
        if branch.int8 is not None:
            files.append(ModelFile(f"{role}.int8.onnx", role, "int8", branch.int8.file, branch.int8.target, None))
        if branch.static is not None:
            files.append(ModelFile(f"{role}.static.int8.onnx", "static", "int8", branch.static.file, branch.static.target, None))
        files += [ModelFile(f"{role}.int8.{one.target}.onnx", role, "int8", one.file, one.target, None) for one in branch.further]
    return tuple(files)
