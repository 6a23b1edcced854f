"""The command line: what it answers without torch, exit codes, where runs are found."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
import yaml

from compress.cli import error_exit, main, run_commands
from compress.commands.doctor import environment
from compress.core.errors import CompressError, Interrupted, MissingError, StageError, UsageError
from compress.stages import STAGES

ROOT = Path(__file__).parents[2]
GOOD = "data: {source: fashion}\nteacher: {candidates: [{model: resnet20}]}\nstudent: {model: mobilenet_v2}\n"

# What help and the check of a recipe may import: 0.2 and 0.35 s on one idle core. A clock would show nothing where
# tests share the machine.
LIGHT = {
    "click",
    "yaml",
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_extensions",
    "typing_inspection",
    "compress",
    "export",
}

# Runs the command line as `compress` would, then prints on the last line of stderr which heavy packages were imported.
PROBE = f"""
import sys
before = set(sys.modules)
from compress.cli.main import main
code = main(sys.argv[1:])
found = {{name.split(".")[0] for name in set(sys.modules) - before if not name.startswith(("_", "cython"))}}
heavy = found - {LIGHT!r} - set(sys.stdlib_module_names) | {{"torch._dynamo"}} & set(sys.modules)
print("imported:", *sorted(heavy), file=sys.stderr)
sys.exit(code)
"""


def compress(*arguments: str, code: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(("-m", "compress") if code is None else ("-c", code)), *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad.yaml"
    path.write_text(GOOD + "distill: {temprature: 3}\ntrain: {epochs: 0}\n")
    return path


def test_help_and_a_wrong_recipe_import_nothing_that_takes_time(bad: Path) -> None:
    for arguments, expected in (([], 0), (["run", "--help"], 0), (["run", str(bad)], 2), (["models"], 0)):
        done = compress(*arguments, code=PROBE)
        assert done.returncode == expected
        assert done.stderr.splitlines()[-1] == "imported:", arguments


def test_check_imports_torch_without_its_compiler(good: Path) -> None:
    done = compress("check", str(good), code=PROBE)

    imported = done.stderr.splitlines()[-1].split()
    assert (done.returncode, "torch" in imported) == (0, True)
    assert not {"sympy", "torch._dynamo", "torchvision", "onnx"} & set(imported)


def test_a_wrong_recipe_is_exit_2_with_one_line_a_mistake(bad: Path) -> None:
    done = compress("run", str(bad))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"{bad}:4:11: distill.temprature: unknown key (did you mean 'temperature'?)",
        f"{bad}:5:17: train.epochs: must be at least 1, got 0",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["recpies"], 2, "no command 'recpies' (did you mean 'recipes'?)"),
        (["zzz"], 2, f"no command 'zzz' (there are {', '.join(main.cli.commands)})"),
        (["run"], 2, "Missing argument 'RECIPE' (see: compress run --help)"),
        (["run", "x.yaml", "--device", "tpu"], 2, "--device tpu: expected auto, cpu, cuda, cuda:N or mps"),
        (
            ["run", "recipes/mobilnet.yaml"],
            2,
            "recipes/mobilnet.yaml: no such recipe (did you mean recipes/mobilenet.yaml?)",
        ),
        (["run", "mobilenet"], 2, "mobilenet: no such recipe (did you mean recipes/mobilenet.yaml?)"),
        (["run", "recipes"], 2, "recipes: this is a folder, not a recipe"),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main.main(arguments) == code
    assert capsys.readouterr().err == message + "\n"


def test_a_wrong_stage_names_all_stages(capsys: pytest.CaptureFixture[str], good: Path) -> None:
    assert main.main(["run", str(good), "--until", "x"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and all(stage in said for stage in STAGES)


def test_show_prints_a_recipe_that_shows_the_same_again(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["show", str(good), "--set", "train.epochs=7"]) == 0
    first = capsys.readouterr().out
    assert yaml.safe_load(first)["train"]["epochs"] == 7
    again = tmp_path / "again.yaml"
    again.write_text(first)
    assert main.main(["show", str(again)]) == 0
    assert capsys.readouterr().out == first


def test_schema_methods_models_and_recipes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert main.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Recipe"
    for command, first in (
        ("methods", "dhkd"),
        ("models", "resnet8"),
        ("recipes", "recipes/cifar100/resnet110-resnet32.yaml"),
    ):
        assert main.main([command]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"{first} ")
        assert all(len(line.split("  ", 1)) == 2 for line in lines)


def test_version_and_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("compress ")
    for name, command in main.cli.commands.items():
        assert command.help, name
        assert main.main([name, "--help"]) == 0


def test_doctor_names_what_is_missing_and_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        environment, "REQUIRED", {"yaml": ("PyYAML", "recipes"), "no_such_package": ("no-such", "nothing")}
    )
    assert main.main(["doctor"]) == 3
    rows = [line.split(None, 2) for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows[1:3]] == [["PyYAML", "ok"], ["no-such", "missing"]]
    assert rows[2][2].startswith("for nothing; install it with: ") and rows[2][2].endswith(" -m pip install no-such")
    monkeypatch.setattr(environment, "REQUIRED", {})
    assert main.main(["doctor"]) == 0


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_doctor_tries_to_write_where_results_go(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    monkeypatch.setattr(environment, "REQUIRED", {})
    arguments = ["doctor", "--artifacts", str(tmp_path / "a" / "b")]
    assert main.main(arguments) == 0 and list(tmp_path.iterdir()) == []
    opened = os.open

    def refused(path: str, flags: int, *more: int, **options: int) -> int:
        if str(path).startswith(str(tmp_path)) and flags & os.O_RDWR:
            raise OSError(number, os.strerror(number), path)
        return opened(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", refused)
    capsys.readouterr()
    assert main.main(arguments) == 3
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split(None, 2) == [
        "disk",
        "missing",
        f"{tmp_path} cannot be written ({os.strerror(number)}); choose another place with --artifacts",
    ]


@pytest.mark.parametrize("text", ["mobilenet", "FOLDER"])
def test_a_run_is_found_by_name_or_folder(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "runs" / "mobilenet" / "20260101T000000Z-00000000"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text("{}")
    (folder.parent / "latest").symlink_to(folder.name)
    assert run_commands.find_run(str(folder) if text == "FOLDER" else text, tmp_path) == folder


def test_a_run_that_is_not_there_is_exit_3_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs" / "mobilenet" / "latest"
    folder.mkdir(parents=True)
    with pytest.raises(
        MissingError,
        match=(
            "no finished run 'mobilnet' \\(did you mean 'mobilenet'\\?\\); give the folder of a run, or where "
            "runs lie with"
        ),
    ):
        run_commands.find_run("mobilnet", tmp_path)
    monkeypatch.chdir(ROOT)
    with pytest.raises(
        MissingError, match=r"no finished run 'mobilenet' .*; make one with: compress run recipes/mobilenet.yaml$"
    ):
        run_commands.find_run("mobilenet", tmp_path)
    with pytest.raises(MissingError, match="there is no report.json in this folder; finish the run with: compress run"):
        run_commands.find_run(str(folder), tmp_path)


@pytest.mark.parametrize("place", ["file", "file/below/it"])
def test_artifacts_that_would_lie_in_a_file_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    (tmp_path / "file").touch()
    assert main.main(["run", "recipes/mobilenet.yaml", "--artifacts", str(tmp_path / place)]) == 2
    assert f"--artifacts {tmp_path / place}: {tmp_path / 'file'} is a file; name a folder" in capsys.readouterr().err


def test_artifacts_come_from_the_environment(tmp_path: Path) -> None:
    done = compress("report", "nothing", COMPRESS_ARTIFACTS=str(tmp_path))
    assert done.returncode == 3
    hint = "give the folder of a run, or where runs lie with --artifacts"
    assert done.stderr == f"no finished run 'nothing' (finished runs in {tmp_path}/runs: none); {hint}\n"


def test_artifacts_without_a_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["doctor", "--artifacts", ""]) == 2
    assert capsys.readouterr().err == "--artifacts: expected a folder, got an empty name\n"


RUN = ["run", "a b.yaml"]
AGAIN = "interrupted; run the same command again to resume: compress run 'a b.yaml'"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("u"), 2, "u"),
        (MissingError("m"), 3, "m"),
        (StageError("s"), 4, "s"),
        (CompressError("c"), 1, "c"),
        (KeyboardInterrupt(), 130, AGAIN),
        (click.Abort(), 130, AGAIN),
        (Interrupted(AGAIN.partition(":")[0]), 130, AGAIN),
        (Interrupted("stopped"), 130, "stopped"),
        (
            torch.OutOfMemoryError("CUDA out of memory."),
            4,
            "the device's memory is full; lower train.batch_size, or choose another device with --device",
        ),
        (OSError(28, "Full", "x.bin"), 4, "x.bin: Full; make room or choose another place with --artifacts"),
        (
            OSError(30, "Read-only file system", "x.bin"),
            4,
            "x.bin: cannot be written (Read-only file system); choose another place with --artifacts",
        ),
        (OSError(13, "Denied", "x.bin"), 4, "x.bin: cannot be written (Denied); choose another place with --artifacts"),
        (
            OSError(1, "Not permitted"),
            4,
            "a file: cannot be written (Not permitted); choose another place with --artifacts",
        ),
    ],
)
def test_expected_errors_have_a_sentence_and_an_exit_code(error: BaseException, code: int, message: str) -> None:
    assert error_exit.explain(error, RUN) == (code, message)


def test_a_file_that_may_not_be_read_is_not_called_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may
    assert error_exit.explain(OSError(13, "Denied", str(tmp_path / "x")), RUN) == (
        4,
        f"{tmp_path / 'x'}: cannot be read (Denied)",
    )


def test_another_command_does_not_offer_to_resume() -> None:
    assert error_exit.explain(KeyboardInterrupt(), ["models"]) == (130, "interrupted")


BUG = """
import sys
from compress.cli import main
from compress.recipe import loader
def broken(*_, **__):
    raise ZeroDivisionError("two\\nlines")
loader.load = broken
sys.exit(main.main({arguments!r}))
"""
WAIT = """
import sys, time
from compress.cli import main
from compress.recipe import loader
def wait(*_, **__):
    print("ready", flush=True)
    time.sleep(30)
loader.load = wait
sys.exit(main.main({arguments!r}))
"""


def test_a_bug_is_one_line_and_exit_1(good: Path) -> None:
    done = compress(code=BUG.format(arguments=["show", str(good)]))
    assert done.returncode == 1
    assert done.stderr == "bug: ZeroDivisionError: two lines (<string>:6); add --traceback to see the rest\n"


def test_traceback_shows_the_rest_wherever_it_stands(good: Path) -> None:
    for arguments, variables in (
        (["show", str(good), "--traceback"], {}),
        (["show", str(good)], {"COMPRESS_TRACEBACK": "1"}),
    ):
        done = compress(code=BUG.format(arguments=arguments), **variables)
        assert done.returncode == 1
        assert done.stderr.startswith("Traceback (most recent call last):") and "bug:" not in done.stderr


def test_sigterm_is_exit_130(good: Path) -> None:
    command = [sys.executable, "-c", WAIT.format(arguments=["run", str(good)])]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == f"interrupted; run the same command again to resume: compress run {good}\n"


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    read, written = os.pipe()
    os.close(read)
    with os.fdopen(written, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "compress", "schema"],
            cwd=ROOT,
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
