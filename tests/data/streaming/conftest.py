from __future__ import annotations

from pathlib import Path

import pytest

from compress.core.records.training import TrainingData
from compress.data.sources.prepare import prepare_data
from compress.recipe.schema import Data
from compress.stages import data
from tests.support import image_stand_in
from tests.support.streamed_set import SIDE


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    """Prepare 45 images of three classes in two shards a part, nine of them for validation."""
    root = image_stand_in.shards(tmp_path_factory.mktemp("set"), train=15, val=1, each=23)
    config = Data(source="webdataset", root=str(root), image_size=SIDE, validation=9, workers=1)
    prepared = prepare_data(config, tmp_path_factory.mktemp("work"), base=Path("/"), report=lambda text: None)
    return data.training(prepared, config)
