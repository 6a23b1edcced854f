"""Students that ship in another form than they are trained in, from training to int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from compress.core.records.deployment import Exported
from compress.core.records.training import Network, Stripped
from compress.models.count import params
from compress.recipe.schema import Candidate, Catkd, Distill, Export, Quantize, Simkd
from compress.stages import convert, data, distill, quantize, strip, teacher
from compress.training import build
from tests.stages.conftest import TARGET, TRAIN, VERSIONS

pytestmark = pytest.mark.slow

FORMS = {
    "simkd": Distill(method="simkd", simkd=Simkd(factor=2)),
    "catkd": Distill(method="catkd", catkd=Catkd(side=2, cat=0.1)),
}
PLAIN = 77_652  # resnet8 at 4 classes


@pytest.fixture(scope="module", params=FORMS)
def shipped(
    request: pytest.FixtureRequest, context: Any, network: Network, training: Any
) -> tuple[str, Stripped, Exported, Any]:
    """Trained for an epoch, stripped, exported."""
    name, config = request.param, FORMS[request.param]
    short = TRAIN.model_copy(update={"epochs": 1})
    taught = teacher.run_teacher(
        Candidate(model="resnet8", train=short),
        context=context(f"{name}-teacher"),
        network=network,
        data=training,
        weights=None,
    )
    given = {"student": network, "teacher": taught, "data": training}
    distilled = distill.run_distill(
        config, context=context(f"{name}-distill"), start="none", weights=None, train=short, **given
    )
    stripped = strip.run_strip(config, context=context(f"{name}-strip"), trained=distilled, **given)
    exported = convert.run_convert(
        Export(),
        context=context(f"{name}-convert"),
        model=stripped.trained,
        recorded=stripped.predictions,
        data=training,
        versions=VERSIONS,
    )
    return name, stripped, exported, distilled


def test_parameters_and_what_was_dropped(shipped):
    name, stripped, _, _ = shipped
    trained = stripped.trained
    projector = 64 * 32 + 9 * 32 * 32 + 32 * 64 + 4 * 32 + 2 * 64
    assert trained.params == {"simkd": PLAIN + projector, "catkd": PLAIN - 4}[name]
    assert (stripped.plain_params, trained.network.deployed["kind"]) == (PLAIN, name)
    assert stripped.dropped == {"simkd": ("fc.bias", "fc.weight"), "catkd": ("fc.bias",)}[name]
    assert trained.macs >= stripped.plain_macs if name == "simkd" else trained.macs == stripped.plain_macs
    assert params(build.load_network(trained.network, trained.weights, "cpu")) == trained.params


def test_validation_in_training_was_of_what_ships(shipped):
    _, stripped, _, distilled = shipped
    last = distilled.history.path.read_text().splitlines()[-1].split(",")
    header = distilled.history.path.read_text().splitlines()[0].split(",")
    assert float(last[header.index("top1_validation")]) == pytest.approx(stripped.trained.top1_validation)


def test_simkd_ships_the_teachers_classifier(shipped):
    name, stripped, _, distilled = shipped
    if name == "simkd":
        state, combined = load_file(stripped.trained.weights.path), load_file(distilled.combined.path)
        assert np.array_equal(state["fc.weight"].numpy(), combined["method.classifier.weight"].numpy())


def test_the_onnx_file_and_int8_are_made_of_what_ships(shipped, context, prepared, data_config):
    name, _, exported, _ = shipped
    assert exported.max_abs_diff < 1e-3 and exported.disagreements == 0
    quantized = quantize.run_quantize(
        Quantize(),
        context=context(f"{name}-quantize"),
        model=exported,
        data=data.calibration(prepared, data_config),
        target=TARGET,
        versions=VERSIONS,
    )
    assert 0 < quantized.file.bytes < exported.file.bytes
