"""Who may import whom, read from the source; and that training needs neither onnx nor torchvision nor matplotlib."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = ("torchvision", "onnx", "onnxscript", "onnxruntime", "matplotlib", "PIL", "scipy", "pandas", "sklearn")

# What a module may import of the project, imports inside functions included. A pattern covers a package's modules; the first one counts.
FOUNDATIONS = (
    "compress.core.files",
    "compress.core.errors",
    "compress.core.records.base",
    "compress.core.records.training",
    "compress.core.records.deployment",
)
ABOVE_STAGES = (
    *FOUNDATIONS,
    "compress.recipe.schema",
    "compress.verdict.intervals",
    "compress.verdict.requirements",
    "compress.core.store",
    "compress.training.checkpoint",
    "compress.training.loop",
    "compress.training.evaluation",
    "compress.training.teacher.logit_cache",
    "compress.training.build",
    "compress.training.distill",
    "compress.verdict.teacher_choice",
    "compress.methods",
    "compress.data*",
    "compress.models*",
    "compress.report",
    "compress.core.console",
    "compress.verdict.diagnosis",
    "compress.verdict.slices",
    "compress.stages.support.latency",
    "compress.pipeline.plan.table",
    "compress.verdict.device_requirements",
    "compress.report.report_json",
    "compress.verdict.shipped_model",
    "export.*",
    "compress",
)
ALLOWED: dict[str, tuple[str, ...]] = {
    "compress": (),
    "compress.core.errors": (),
    "compress.core.files": (),
    "compress.core.records.base": (),
    "compress.core.records.training": ("compress.core.records.base",),
    "compress.core.records.deployment": ("compress.core.records.base",),
    "compress.methods.losses*": ("compress.methods.losses.*",),
    "compress.core.stateless_random": (),
    "compress.training.gradients": (),
    "compress.verdict.intervals": (),
    "compress.recipe.schema*": ("compress.core.errors", "compress.recipe.schema.*", "export.targets"),
    "compress.recipe.yaml_tree": ("compress.core.errors",),
    "compress.recipe.error_messages": ("compress.recipe.schema", "compress.recipe.yaml_tree"),
    "compress.recipe.overrides": (
        "compress.core.errors",
        "compress.recipe.error_messages",
        "compress.recipe.schema",
        "compress.recipe.yaml_tree",
        "compress",
    ),
    "compress.recipe.cross_checks": (
        "compress.core.errors",
        "compress.recipe.error_messages",
        "compress.recipe.schema",
        "compress.recipe.yaml_tree",
        "compress.recipe.method_checks",
        "compress.models.catalog",
    ),
    "compress.recipe.method_checks": ("compress.recipe.schema", "compress.recipe.yaml_tree", "compress.models.catalog"),
    "compress.recipe.loader": (
        "compress.core.errors",
        "compress.recipe.error_messages",
        "compress.recipe.overrides",
        "compress.recipe.schema",
        "compress.recipe.yaml_tree",
        "compress.recipe.cross_checks",
    ),
    "compress.recipe.reference_docs": ("compress.recipe.schema",),  # docs/recipe.md
    "compress.commands.analyze.calibration": (),
    "compress.pipeline.run_folder.recipe_copy": (
        "compress.models.catalog",
        "compress.recipe.loader",
        "compress.recipe.schema",
        "compress.recipe.yaml_tree",
        "compress",
    ),
    "compress.pipeline.run_folder.cache_refs": (
        *FOUNDATIONS,
        "compress.recipe.schema",
        "compress.pipeline.run_folder.recipe_copy",
        "compress.core.store",
    ),
    "compress.commands.analyze.features": (
        *FOUNDATIONS,
        "compress.training.build",
        "compress.data*",
        "compress.pipeline.run_folder.cache_refs",
        "compress.methods*",
        "compress.models.taps",
        "compress.training.evaluation",
        "compress",
    ),
    "compress.commands.analyze.run": (
        *FOUNDATIONS,
        "compress.core.console",
        "compress.commands.analyze.features",
        "compress.commands.analyze.calibration",
        "compress.pipeline.run_folder.cache_refs",
        "compress.training.build",
        "compress.report*",
        "compress.pipeline.run_folder.recipe_copy",
        "compress.core.store",
        "compress",
    ),
    "compress.verdict.requirements": ("compress.recipe.schema", "compress.verdict.intervals"),
    "compress.verdict.device_requirements": ("compress.recipe.schema", "compress.verdict.requirements"),
    "compress.verdict.shipped_model": (
        "compress.core.records.deployment",
        "compress.verdict.intervals",
        "compress.verdict.requirements",
        "export.runtime",
    ),
    "compress.report.report_json": (
        *FOUNDATIONS,
        "compress.verdict.device_requirements",
        "compress.models.size_warning",
        "compress.recipe.schema",
        "compress.verdict.teacher_choice",
        "compress.verdict.shipped_model",
        "compress.verdict.intervals",
        "compress.verdict.requirements",
        "compress",
    ),
    "compress.report.console_summary": (),
    "compress.core.progress_bar": (),
    "compress.core.console": ("compress.report.console_summary", "compress.core.progress_bar"),
    "compress.cli.exit_codes": ("compress.core.files", "compress.core.console", "compress.core.errors"),
    "compress.core.distributed": ("compress.core.errors",),
    "compress.core.store": (*FOUNDATIONS, "compress.core.malloc", "compress.core.console", "compress.core.distributed"),
    "compress.data*": (*FOUNDATIONS, "compress.recipe.schema", "compress.core.stateless_random", "compress.data.*"),
    "compress.models.size_warning": (),
    "compress.models.onnx_network": ("export.runtime",),
    "compress.models*": (*FOUNDATIONS, "compress.recipe.schema", "compress.models", "compress.models.*"),
    "compress.methods*": (
        "compress.core.errors",
        "compress.methods.losses",
        "compress.recipe.schema",
        "compress.core.stateless_random",
        "compress.methods.*",
        "compress.models.catalog",
        "compress.models.outline",
        "compress.models.deployed",
        "compress.core.distributed",
    ),
    "compress.training.step": (
        "compress.data.augment.views",
        "compress.data.augment.distort",
        "compress.core.records.training",
        "compress.core.distributed",
        "compress.training.gradients",
        "compress.methods.losses.upcast",
        "compress.methods",
        "compress.training.precision",
        "compress.training.engine.autograd_reach",
    ),
    "compress.core.malloc": (),
    "compress.training.engine.autograd_reach": (),
    "compress.training.engine.recorder": ("compress.training.step",),
    "compress.training.engine.cuda_graph": ("compress.training.engine.recorder",),
    "compress.training.engine.compile": (
        "compress.models.taps",
        "compress.training.engine.autograd_reach",
        "compress.training.engine.recorder",
        "compress.training.step",
    ),
    "compress.training.engine.modes": (
        "compress.training.engine.compile",
        "compress.training.engine.cuda_graph",
        "compress.training.engine.recorder",
        "compress.training.step",
    ),
    "compress.training.batches": ("compress.training.step", "compress.data.streaming.batches"),
    "compress.data.streaming.batches": (
        "compress.data.streaming.listing",
        "compress.data.streaming.readahead",
        "compress.data.streaming.workers",
        "compress.training.schedule",
    ),
    "compress.training.teacher.logit_cache": (
        "compress.core.files",
        "compress.core.errors",
        "compress.core.store",
        "compress.training.precision",
        "compress.training.schedule",
    ),
    "compress.training.teacher.live": (
        "compress.training.teacher.logit_cache",
        "compress.training.precision",
        "compress.models.taps",
    ),
    "compress.training.checkpoint": ("compress.core.files", "compress.core.errors"),
    "compress.training.precision": (),
    "compress.training.loss_meter": ("compress.core.errors",),
    "compress.training.interrupt": ("compress.core.errors",),
    "compress.training.schedule": ("compress.core.errors", "compress.recipe.schema"),
    "compress.training.kernels*": (
        "compress.training.kernels",
        "compress.training.kernels.*",
        "compress.models.residual_sum",
    ),
    "compress.training.evaluation": (
        "compress.data.augment.views",
        "compress.models.input_adapter",
        "compress.models.onnx_network",
        "compress.training.precision",
        "compress.core.records.training",
        "compress.training.schedule",
        "compress.data.streaming.batches",
    ),
    "compress.training.loop": (
        *FOUNDATIONS,
        "compress.recipe.schema",
        "compress.training.schedule",
        "compress.training.precision",
        "compress.training.loss_meter",
        "compress.training.interrupt",
        "compress.methods",
        "compress.training.step",
        "compress.core.malloc",
        "compress.training.engine.compile",
        "compress.training.engine.modes",
        "compress.core.distributed",
        "compress.training.checkpoint",
        "compress.data.augment.views",
        "compress.models.taps",
        "compress.training.batches",
        "compress.data.streaming.batches",
        "compress.training.kernels",
        "compress.training.evaluation",
    ),
    "compress.training.build": (
        *FOUNDATIONS,
        "compress.recipe.schema",
        "compress.training.precision",
        "compress.data*",
        "compress.models*",
        "compress.methods",
        "compress.training.teacher.logit_cache",
        "compress.training.teacher.live",
        "compress.training.step",
        "compress.data.streaming.batches",
        "compress.training.evaluation",
    ),
    "compress.training.distill": (
        *FOUNDATIONS,
        "compress.recipe.schema",
        "compress.core.store",
        "compress.training.build",
        "compress.data*",
        "compress.methods",
        "compress.models*",
        "compress.training.evaluation",
        "compress.training.precision",
        "compress.training.step",
        "compress.training.teacher.logit_cache",
        "compress.training.teacher.live",
        "compress.training.loop",
    ),
    "compress.verdict.teacher_choice": ("compress.core.records.training", "compress.verdict.intervals"),
    "compress.verdict.diagnosis": ("compress.verdict.intervals",),
    "compress.verdict.majority_baseline": (*FOUNDATIONS, "compress.data.splits", "compress.verdict.intervals"),
    "compress.verdict.slices": ("compress.verdict.intervals",),
    "compress.stages.support.latency": (*FOUNDATIONS, "compress.data*", "export.*"),
    "compress.pipeline.plan.table": ("compress.models.catalog",),
    "compress.stages.support.device_session": ("compress.core.console", "compress.core.errors", "export.targets*"),
    "compress.stages*": (*ABOVE_STAGES, "compress.stages.support.device_session"),
    "compress.pipeline.plan.candidates": (
        *FOUNDATIONS,
        "compress.recipe.schema",
        "compress.methods.compatibility",
        "compress.pipeline.plan.table",
        "compress.models.catalog",
        "compress.models.custom",
        "export.graph.foreign_model",
    ),
    "compress.pipeline.plan.limits": (
        "compress.recipe.schema",
        "compress.pipeline.plan.candidates",
        "compress.verdict.requirements",
        "compress",
    ),
    "compress.pipeline.plan.run": (
        *FOUNDATIONS,
        "compress.recipe.schema",
        "compress.pipeline.plan.limits",
        "compress.pipeline.plan.table",
        "compress.pipeline.plan.candidates",
        "compress.models.catalog",
        "compress.core.store",
        "compress.stages*",
        "export.runtime",
    ),
    "compress.commands.verify": (
        "compress.stages.support.device_session",
        "compress.core.console",
        "compress.core.errors",
        "compress.recipe.schema",
        "compress.verdict.device_requirements",
        "compress.report",
        "compress.stages.device",
        "compress.core.files",
        "compress.pipeline.run_folder.recipe_copy",
        "compress.report.console_summary",
        "export.targets*",
    ),
    "compress.commands.doctor.self_test_network": ("compress.data*", "compress.verdict.diagnosis", "export.*"),
    "compress.commands.doctor.self_test": (
        "compress.verdict.diagnosis",
        "compress.commands.doctor.self_test_network",
        "compress.recipe.schema",
        "compress.verdict.intervals",
        "compress.verdict.requirements",
        "export.*",
        "compress",
    ),
    "compress.report*": (
        "compress.core.files",
        "compress.core.errors",
        "compress.verdict.intervals",
        "compress.report.*",
    ),
    "compress.commands.check": (
        *FOUNDATIONS,
        "compress.recipe.loader",
        "compress.methods.compatibility",
        "compress.pipeline.float_layer_check",
        "compress.data",
        "compress.data.*",
        "compress.methods",
        "compress.models*",
        "compress.recipe.schema",
        "export.graph.foreign_model",
        "export.runtime.conditions",
        "export.graph.from_torch",
        "export.runtime",
    ),
    "compress.pipeline.float_layer_check": (
        *FOUNDATIONS,
        "compress.recipe.loader",
        "compress.recipe.schema",
        "compress.pipeline.plan.candidates",
        "compress.pipeline.plan.stages",
        "compress",
        "export.graph.from_torch",
        "export.graph.layers",
        "export.int8.quantize",
        "export.runtime",
    ),
    "compress.methods.compatibility": (
        "compress.core.errors",
        "compress.recipe.loader",
        "compress.recipe.schema",
        "compress.methods",
        "compress.models*",
    ),
    "compress.commands.doctor.environment": (
        "compress.training.kernels.library",
        "export.runtime",
        "export.runtime.provider",
        "compress.commands.doctor.self_test",
    ),
    "compress.pipeline.networks": (
        *FOUNDATIONS,
        "compress.recipe.schema",
        "compress.models.catalog",
        "compress.models.checkpoints",
        "compress.models.custom",
        "compress.stages.teacher",
    ),
    "compress.pipeline.workflow": (
        *FOUNDATIONS,
        "compress.recipe.schema",
        "compress.recipe.loader",
        "compress.methods.compatibility",
        "compress.pipeline.float_layer_check",
        "compress.pipeline.networks",
        "compress.verdict.teacher_choice",
        "compress.core.store",
        "compress.stages",
        "compress.stages.*",
        "compress.data.sources.prepare",
        "compress.report",
        "compress.pipeline.plan.run",
        "compress.verdict.device_requirements",
        "compress.report.report_json",
        "compress.verdict.majority_baseline",
        "compress.verdict.shipped_model",
        "compress.models.catalog",
        "compress",
        "export.runtime.conditions",
        "export.runtime",
        "export.targets",
    ),
    "compress.pipeline.run": (
        *FOUNDATIONS,
        "compress.recipe.loader",
        "compress.methods.compatibility",
        "compress.verdict.requirements",
        "compress.core.console",
        "compress.core.store",
        "compress.verdict.teacher_choice",
        "compress.core.distributed",
        "compress.report.run_folder",
        "compress.pipeline.plan.run",
        "compress.pipeline.workflow",
        "compress.verdict.device_requirements",
        "compress.pipeline.run_folder.cache_refs",
        "compress.pipeline.run_folder.recipe_copy",
        "compress.report.report_json",
        "export.runtime.conditions",
    ),
    "compress.cli": (),
    "compress.cli.options": ("compress.core.errors",),
    "compress.cli.recipe_commands": (
        "compress.cli.options",
        "compress.core.console",
        "compress.core.errors",
        "compress.pipeline.run",
        "compress.commands.check",
        "compress.recipe.loader",
        "compress.verdict.teacher_choice",
        "compress.stages",
        "compress",
    ),
    "compress.cli.run_commands": (
        "compress.cli.options",
        "compress.core.console",
        "compress.core.errors",
        "compress.commands.analyze.run",
        "compress.commands.verify",
        "compress.report",
        "compress.verdict.requirements",
        "compress",
    ),
    "compress.cli.info_commands": (
        "compress.cli.options",
        "compress.core.console",
        "compress.core.errors",
        "compress.commands.doctor.environment",
        "compress.models",
        "compress.models.catalog",
        "compress.recipe.schema",
    ),
    "compress.cli.main": (
        "compress.cli",
        "compress.cli.*",
        "compress.core.console",
        "compress.core.errors",
        "compress.cli.exit_codes",
        "compress",
    ),
    "compress.__main__": ("compress.cli.main", "compress.core.distributed"),
    "export": (),
    "export.runtime": ("export.runtime.conditions",),
    "export.runtime.rounds": (),
    "export.graph.quiet": (),
    "export.runtime.conditions": (),
    "export.runtime.latency_stats": ("export.runtime", "export.runtime.rounds", "export.runtime.conditions"),
    "export.runtime.latency": (
        "export.runtime",
        "export.runtime.rounds",
        "export.runtime.conditions",
        "export.runtime.latency_stats",
    ),
    "export.runtime.photos": ("export.runtime", "export.runtime.latency", "export.runtime.latency_stats"),
    "export.runtime.provider": ("export.runtime",),
    "export.runtime.sustained": ("export.runtime", "export.runtime.conditions"),
    "export.runtime.answers": ("export.runtime", "export.runtime.latency_stats", "export.runtime.provider"),
    "export.verify": (
        "export.runtime",
        "export.runtime.answers",
        "export.runtime.latency",
        "export.runtime.photos",
        "export.runtime.provider",
        "export.runtime.sustained",
    ),
    "export.*": ("export.*",),
}


def modules() -> dict[str, Path]:
    files = [path for package in ("compress", "export") for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


MODULES = modules()


def imported(path: Path, top_level: bool = False) -> Iterator[str]:
    """Full names of what a file imports; `from a import b` is `a.b` where that is a module. `top_level`: not what functions import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for scope in ast.walk(tree)
        if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(scope)
    }
    inside |= {
        id(node)
        for guard in ast.walk(tree)
        if isinstance(guard, ast.If) and "TYPE_CHECKING" in ast.dump(guard.test)
        for node in ast.walk(guard)
    }
    for node in ast.walk(tree):
        if top_level and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative imports hide where a name comes from"
            yield from {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else node.module
                for alias in node.names
            }


def of_project(name: str) -> bool:
    return name.split(".")[0] in ("compress", "export", "tests")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_place_allows(module):
    pattern = next((pattern for pattern in ALLOWED if fnmatch(module, pattern)), None)
    assert pattern is not None, f"{module} has no place in the table of this test: say what it may import"
    found = sorted({name for name in imported(MODULES[module]) if of_project(name)})
    wrong = [name for name in found if not any(fnmatch(name, allowed) for allowed in ALLOWED[pattern])]
    assert not wrong, (
        f"{module} imports {', '.join(wrong)}; {pattern} may import {', '.join(ALLOWED[pattern]) or 'nothing'} of the project"
    )


def test_the_table_names_modules_that_exist():
    assert not [pattern for pattern in ALLOWED if not any(fnmatch(module, pattern) for module in MODULES)]


def test_a_stage_imports_no_other_stage():
    stages = [module for module in MODULES if module.startswith("compress.stages.")]
    assert len(stages) >= 9
    assert not [
        (module, name) for module in stages for name in imported(MODULES[module]) if name.startswith("compress.stages")
    ]


def test_export_never_imports_compress():
    exports = [module for module in MODULES if module.split(".")[0] == "export"]
    assert len(exports) >= 9
    assert not [
        (module, name) for module in exports for name in imported(MODULES[module]) if name.split(".")[0] == "compress"
    ]


@pytest.mark.parametrize(
    "module",
    [
        "export",
        *(
            f"export.{name}"
            for name in (
                "runtime",
                "measure",
                "rounds",
                "timings",
                "conditions",
                "provider",
                "sustained",
                "answers",
                "verify",
            )
        ),
    ],
)
def test_the_device_half_needs_numpy_and_onnxruntime_alone(module):
    foreign = {name.split(".")[0] for name in imported(MODULES[module])} - set(sys.stdlib_module_names) - {"export"}
    assert foreign <= {"numpy", "onnxruntime"}


def test_optional_packages_are_imported_where_they_are_used():
    at_the_top = {
        (module, name.split(".")[0]) for module in MODULES for name in imported(MODULES[module], top_level=True)
    }
    heavy = {(module, name) for module, name in at_the_top if name in OPTIONAL and module.split(".")[0] == "compress"}
    # these modules are themselves imported where photos are decoded and where a report is drawn
    assert heavy == {
        ("compress.data.decode", "PIL"),
        ("compress.stages.support.latency", "PIL"),
        ("compress.commands.doctor.self_test_network", "PIL"),
        ("compress.report.sections.teacher_training_latency", "PIL"),
        ("compress.report.plots", "matplotlib"),
        ("compress.report.analysis_plots", "matplotlib"),
    }


def test_no_file_shadows_a_package():
    names = {path.name for path in MODULES.values()}
    assert not names & {f"{name}.py" for name in (*OPTIONAL, "torch", "numpy", "rich", "click", "yaml")}


BLOCKED = f"""
import sys
from importlib.abc import MetaPathFinder
class Without(MetaPathFinder):
    def __init__(self, finders):
        self.finders = finders
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            return None
        return next((spec for finder in self.finders if (spec := finder.find_spec(name, path, target)) is not None), None)
sys.meta_path[:] = [Without(list(sys.meta_path))]
import importlib.metadata
found = importlib.metadata.version
def version(name):
    if name in {OPTIONAL!r}:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.version = version
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_training_stages_import_without_optional_packages():
    names = "compress.pipeline.run, compress.stages.data, compress.stages.teacher, compress.stages.distill, compress.stages.strip"
    done = python(f"{BLOCKED}\nimport {names}\nprint(sorted(set(sys.modules) & set({OPTIONAL!r})))")
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.slow
def test_until_strip_runs_with_torch_and_a_few_small_packages_alone(tmp_path):
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(
        "data: {source: fashion, limit_train: 60, limit_test: 20, validation: 0.2}\n"
        "teacher: {candidates: [{model: resnet8, train: {epochs: 1}}]}\nstudent: {model: shufflenet_v2, width: 0.5}\ntrain: {epochs: 1}\n"
    )
    code = f"{BLOCKED}\nfrom compress.cli.main import main\nsys.exit(main(['check', sys.argv[1]]) or main(['run', *sys.argv[1:]]))"
    done = python(code, str(recipe), "--artifacts", str(tmp_path / "a"), "--until", "strip")
    assert done.returncode == 0, done.stderr
    assert "tiny.yaml: ok\n" in done.stdout and "stopped after strip, as asked" in done.stdout
