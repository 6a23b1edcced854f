"""The networks that a recipe names, as records: how to build each, its normalisation, the file of its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.core.class_names import nfc
from compress.core.errors import MissingError, UsageError
from compress.core.plural import plural
from compress.core.records.base import File
from compress.core.records.training import Network, Normalization, Prepared
from compress.core.records.warnings import RunWarning
from compress.models import catalog, checkpoints, custom, timm_models
from compress.models.meta import shapes_only
from compress.models.weight_choice import take_weights
from compress.recipe.schema import Candidate, Choice, Normalize, Recipe
from compress.stages import teacher
from compress.stages.support import foreign_teacher


def normalized(section: Normalize) -> Normalization:
    """Return the record of a recipe's section."""
    return Normalization(section.mean, section.std)


def _published_size(candidate: Candidate) -> int | None:
    """Return the side of the images that timm's published weights were trained with, for a teacher that is not."""
    if not catalog.is_timm(candidate.model) or candidate.train is not None or catalog.is_checkpoint(candidate.weights):
        return None
    published = timm_models.published_input(candidate.model, candidate.weights)
    return None if published is None else published.image_size


@dataclass(frozen=True)
class NetworkResolver:
    """Resolves the networks of one recipe. `settings` is a resolved recipe; `base`: where its relative paths begin."""

    settings: Recipe
    prepared: Prepared
    base: Path

    def warnings(self) -> list[RunWarning]:
        """Return a warning for each checkpoint and ONNX file that does not name its normalisation."""
        found, settings = list[str](), self.settings
        advice = "so the data's is used; set `normalize` if it was trained with another"
        weights = [(one.model, one.weights, one.normalize) for one in settings.teacher.candidates if one.onnx is None]
        for one in settings.teacher.candidates:
            if one.onnx is not None and one.normalize is None and settings.data.normalize is None:
                found.append(f"{one.title}: it names no normalisation, {advice}")
        weights += [(one.model, one.weights, None) for one in settings.student.networks]
        for model, key, normalize in weights:
            known = catalog.info(model).family == "photos"  # published as files, all with one normalisation
            if catalog.is_timm(model) and normalize is None and settings.data.normalize is None:
                found += self._uncertain(model, key)
                continue
            if catalog.is_checkpoint(key) and normalize is None and settings.data.normalize is None and not known:
                found.append(f"{model}: its checkpoint names no normalisation, {advice}")
        return [RunWarning(text) for text in found]

    def _uncertain(self, model: str, key: str) -> list[str]:
        """Return a warning where a checkpoint may need another normalisation than timm has for it."""
        published = timm_models.published_input(model, key)
        if published is None or published.certain:
            return []
        mean, std = published.normalization
        taken = f"{list(mean)} and {list(std)} of timm's weights {published.weights!r}"
        return [
            f"{model}: its checkpoint names no normalisation, and timm has weights with several; taken are mean and "
            f"deviation {taken}; set `normalize` if it was trained with another"
        ]

    def network(self, one: Choice | Candidate) -> Network:
        """Return a network with its own normalisation: the recipe's, else its published weights', else the data's."""
        normalize = one.normalize if isinstance(one, Candidate) else None
        asked, info = normalize or self.settings.data.normalize, catalog.info(one.model)
        published = one.weights in info.pretrained or (info.family == "photos" and catalog.is_checkpoint(one.weights))
        if asked is not None:
            normalization = normalized(asked)
        elif published and info.normalization is not None:
            normalization = Normalization(*info.normalization)
        else:
            normalization = self.prepared.normalization
        source = custom.source_digest(one.model) if catalog.is_custom(one.model) else None
        if info.family == "timm":
            source, own = timm_models.version(), timm_models.published_input(one.model, one.weights)
            normalization = Normalization(*own.normalization) if own and asked is None else normalization
        return Network(
            one.model,
            one.width,
            len(self.prepared.classes),
            self.prepared.image_size,
            normalization,
            source=source,
            taps=one.taps,
        )

    def weights(self, key: str, model: str) -> tuple[str, File | None]:
        """Return what a stage's config holds for a `weights` key, and its checkpoint if any. Raises MissingError."""
        if key == "embedded":
            return key, File.of(checkpoints.embedded_teacher(model))
        if key.startswith(("http://", "https://")):
            raise MissingError(
                f"weights: {key} is not downloaded by a run; fetch it first and name the file: curl -LO {key}"
            )
        if catalog.is_checkpoint(key):
            path = self.base / Path(key).expanduser()
            if not path.is_file():
                raise MissingError(
                    f"weights: {path} does not exist; put the checkpoint there, or see it with: ls {path.parent}"
                )
            return "file", File.of(path)
        if catalog.is_timm(model) and key != "none":
            return timm_models.resolve_tag(model, key), None
        return key, None

    def taken(
        self, one: Choice | Candidate, weights: File | None, outputs: int | None = None
    ) -> tuple[str | None, str]:
        """Return which weights of its checkpoint a network takes, as `Network.weights_key`, and a note on them.

        Args:
            one: The network.
            weights: Its checkpoint, if any.
            outputs: How many outputs the network has; None: one for each class.

        Raises:
            CompressError: The file cannot be read, or the recipe must say which weights are meant.
        """
        if weights is None or one.weights == "embedded":
            return None, ""
        side = (one.image_size if isinstance(one, Candidate) else None) or self.prepared.image_size
        model = shapes_only(one.model, classes=outputs or len(self.prepared.classes), width=one.width, image_size=side)
        found = take_weights(weights.path, model, one.weights_key)
        return found.key, found.note

    def start(self, one: Choice) -> tuple[str, File | None, Network, str]:
        """Return a student's start: what its stage's config holds, the checkpoint if any, the network, a note."""
        start, weights = self.weights(one.weights, one.model)
        key, note = self.taken(one, weights)
        return start, weights, replace(self.network(one), weights_key=key), note

    def candidate(self, candidate: Candidate, label: str) -> tuple[Candidate, Network, File | None]:
        """Return a candidate's section for its stage, its network and its file. Raises UsageError or MissingError."""
        weights: File | None
        order = self._order(candidate.classes, label)
        if candidate.onnx is not None:
            path = self.base / Path(candidate.onnx).expanduser()
            if not path.is_file():
                raise MissingError(f"onnx: {path} does not exist; put the file there, or see it with: ls {path.parent}")
            asked = candidate.normalize or self.settings.data.normalize
            normalization = normalized(asked) if asked else self.prepared.normalization
            key, weights = "none", File.of(path)
            network = Network(
                candidate.title,
                None,
                len(self.prepared.classes),
                self.prepared.image_size,
                normalization,
                black_box=True,
                output=candidate.output,
            )
            own_size = candidate.image_size or teacher.file_side(path)
            own_size = None if own_size == network.image_size else own_size
        else:
            key, weights, own_size = *self.weights(candidate.weights, candidate.model), candidate.image_size
            outputs = len(candidate.classes) if candidate.classes else None
            own_size = own_size or _published_size(candidate)
            taken, _ = self.taken(candidate, weights, outputs)  # the stage's record says what it is
            network = replace(self.network(candidate), weights_key=taken)
        network = replace(
            network,
            own_size=own_size,
            channels=candidate.channels,
            order=order,
            outputs=len(candidate.classes) if candidate.classes else None,
        )
        return candidate.model_copy(update={"weights": key, "weights_key": None, "output": None}), network, weights

    def foreign_inputs(self, candidate: Candidate) -> dict[str, Any]:
        """Return what a stage's key holds beside an ONNX file. Raises UsageError if a file with weights is missing."""
        if candidate.onnx is None:
            return {}
        external = foreign_teacher.external_files(self.base / Path(candidate.onnx).expanduser())
        return {"reading": foreign_teacher.READING} | ({"external": external} if external else {})

    def _order(self, names: tuple[str, ...] | None, label: str) -> tuple[int, ...] | None:
        """Return where each of the data's classes stands among a candidate's; None: they are the same, in order.

        Raises UsageError if the candidate lacks a class.
        """
        wanted = self.prepared.classes
        names = None if names is None else tuple(map(nfc, names))
        wanted = tuple(map(nfc, wanted))
        if names is None or names == wanted:
            return None
        missing = [name for name in wanted if name not in names]
        if missing:
            others = f" and {plural(len(missing) - 1, 'other')}" if missing[1:] else ""
            raise UsageError(
                f"teacher {label}: classes: it has no {missing[0]!r}{others}; the data's classes are "
                f"{', '.join(wanted[:5])}{', ...' if wanted[5:] else ''}"
            )
        return tuple(names.index(name) for name in wanted)
