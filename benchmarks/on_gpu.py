"""Everything that wants a GPU, in one script for a machine that is lent for minutes: it goes on where it stopped.

    python benchmarks/on_gpu.py 540 --data cifar100.npz --teacher resnet56.safetensors
    python benchmarks/on_gpu.py 0                  the table alone, of this machine or of --resume
    python benchmarks/on_gpu.py 600 --rehearse     the whole order in small, on the CPU

BUDGET_SECONDS are spent in this order: the tests marked gpu; DHKD's settings for resnet56 -> resnet20, searched on
validation images; three seeds of 240 epochs by DHKD and KD for that pair, then for resnet56 -> MobileNetV2; the teacher
resnet32x4, and what it teaches ResNet-8x4 and ShuffleNetV2; train_speed.py and roofline.py. gpu_steps.py has the order.

A step that is not done when the budget ends is stopped: trainings write a checkpoint, and the next call goes on in
their epochs; tests and speeds begin anew. Results are judged by the published bands, and a miss is called missed.
--artifacts keeps the trainings. --state gets what is needed to go on elsewhere, at most 8 files of 16 MiB. On another
machine name its copy with --resume.

Where the package is not installed: PYTHONPATH=. python benchmarks/on_gpu.py ... Without --data and --teacher, CIFAR-100
and the teacher are read from the folder in COMPRESS_TEST_DATA.

Exit codes: 0 all done and met; 2 wrong usage; 3 something is missing; 4 a step failed; 5 a result is missed;
6 undecided, or steps are left; 130 interrupted.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import gpu_inputs
import travel
from gpu_steps import ROOT, Given, Row, Step, rows, steps

from compress.cli import error_exit
from compress.core.console import table
from compress.core.errors import CompressError, UsageError
from compress.core.files import write_json

SHOW, SAVE = 15.0, 120.0  # seconds between two lines of progress, and between two packed states
RESERVE = 40.0  # seconds of the budget that writing checkpoints and the state may take, at most a quarter of it
STUDENTS = 6  # at once, which share the processor
HINT = "what is done is kept"  # behind the sentence of a script that failed
MPS = "nvidia-cuda-mps-control"
Record = dict[str, Any]


@click.command()
@click.argument("budget_seconds", type=click.IntRange(0))
@click.option("--data", type=click.Path(path_type=Path), help="npz file, or the folder of cifar-100-python")
@click.option("--teacher", type=click.Path(path_type=Path), help="checkpoint of resnet56")
@click.option("--device", default="cuda", show_default=True)
@click.option("--artifacts", default=Path("artifacts/on_gpu"), show_default=True, type=click.Path(path_type=Path))
@click.option("--state", envvar="OUT", type=click.Path(path_type=Path), help="default: $OUT, else ARTIFACTS/state")
@click.option("--resume", type=click.Path(path_type=Path), help="an earlier call's state; default: --state")
@click.option(
    "--rehearse", is_flag=True, help="tiny trainings on embedded images, on the CPU: the numbers mean nothing"
)
def main(
    budget_seconds: int, data: Path | None, teacher: Path | None, device: str, artifacts: Path, state: Path | None,
    resume: Path | None, rehearse: bool,
) -> None:  # fmt: skip
    """Spend BUDGET_SECONDS on the steps that are left; print what is known."""
    begin = time.monotonic()
    state = state or artifacts / "state"
    signal.signal(signal.SIGTERM, error_exit.as_interrupt)
    try:
        record = _resumed(artifacts, resume or state, rehearse)
        given = Given(data, teacher, device, artifacts, rehearse)
        if budget_seconds:
            given = gpu_inputs.rehearsal(artifacts) if rehearse else gpu_inputs.found(given)
        session = _Session(given, record, state, begin, budget_seconds)
        interrupted = session.spend()
    except CompressError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(130 if interrupted else session.show())


def _resumed(artifacts: Path, carried: Path, rehearse: bool) -> Record:
    """Return the newest record: of this machine, or carried here, whose files are then written out."""
    here, there = travel.read(artifacts), travel.read(carried)
    if there is not None and (here is None or there["seconds"] > here["seconds"]):
        travel.unpack(there, carried, artifacts)
        here = there
    here = here or {"rehearse": rehearse, "seconds": 0.0, "steps": {}, "log": [], "results": {}, "spent": []}
    if here["rehearse"] != rehearse:
        kind = "a rehearsal" if here["rehearse"] else "no rehearsal"
        raise UsageError(
            f"{artifacts} and {carried} hold the state of {kind}; choose others with --artifacts and --state"
        )
    return here


class _Session:
    """One call: the record that it continues, and the time that it has."""

    def __init__(self, given: Given, record: Record, state: Path, begin: float, budget: float) -> None:
        self.given, self.record, self.state, self.begin, self.budget = given, record, state, begin, budget
        self.before, self.saved = record["seconds"], begin
        self.reserve = min(RESERVE, budget / 4)

    def spend(self) -> bool:
        """Take the steps that are left until the budget ends; whether a signal ended it earlier."""
        self._restore()
        interrupted = False
        try:
            for step in steps(self.given) if self.budget else ():
                if self._status(step) != "done" and not self._take(step):
                    break
        except KeyboardInterrupt:
            interrupted = True
            print("interrupted; what is done is kept, and the same command goes on", flush=True)
        if self.budget:
            self._save()
        return interrupted

    def _left(self) -> float:
        return self.begin + self.budget - self.reserve - time.monotonic()

    def _status(self, step: Step) -> str:
        return str(self.record["steps"].get(step.name, {}).get("status", "left"))

    def _take(self, step: Step) -> bool:
        """Run a step; False where the budget ended."""
        if self._left() <= 0:
            return False
        if step.found and step.found not in self.record["results"]:
            self.record["steps"][step.name] = {"status": "left", "seconds": 0.0, "said": f"needs {step.found}"}
            return True
        before = self.record["steps"].get(step.name, {}).get("seconds", 0.0)
        begin, codes = time.monotonic(), list[int]()
        status, said = "stopped", ""
        print(f"{step.name}: begins, {self._left():.0f} s are left", flush=True)
        try:
            codes = self._run(step)
            if codes:
                ended = [code in step.codes for code in codes]
                status = "done" if all(ended) else "failed"
                said = self._last_line([self._log(step, 0 if all(ended) else ended.index(False))])
            if status == "done":
                self._keep(step)
        finally:
            seconds = round(time.monotonic() - begin, 1)
            self.record["steps"][step.name] = {"status": status, "seconds": before + seconds, "said": said}
            self.record["log"].append([step.name, status, seconds])
        print(
            f"{step.name}: {status} after {seconds:.0f} s{f' with {codes}: {said}' if status == 'failed' else ''}",
            flush=True,
        )
        self._save()
        return status != "stopped"

    def _run(self, step: Step) -> list[int]:
        """Exit codes of the step's commands; none where the budget ended before them."""
        running: list[subprocess.Popen[bytes]] = []
        with _sharing(step.shares and self.given.device.startswith("cuda")) as environment:
            try:
                for number, told in enumerate(step.told(self.record["results"])):
                    path = ROOT / told[0]
                    with self._log(step, number).open("ab") as log:
                        command = [sys.executable, *([str(path), *told[1:]] if path.is_file() else told)]
                        running.append(
                            subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
                        )
                shown = time.monotonic()
                while any(process.poll() is None for process in running):
                    if self._left() <= 0:
                        return []
                    time.sleep(0.2)
                    if time.monotonic() - shown > SHOW:
                        shown = time.monotonic()
                        print(f"{step.name}: {self._left():.0f} s are left; {self._last_line()}", flush=True)
                    if time.monotonic() - self.saved > SAVE:
                        self._save()
                return [process.returncode for process in running]
            finally:
                _stop(running, max(self.reserve / 2, 5.0))

    def _log(self, step: Step, number: int) -> Path:
        return self.given.artifacts / f"{step.name}.{number}.log"

    def _last_line(self, logs: list[Path] | None = None) -> str:
        """Return the last line of the log that was written last, of all or of these."""
        logs = list(self.given.artifacts.glob("*.log")) if logs is None else logs
        words = max(logs, key=lambda path: path.stat().st_mtime).read_text(errors="replace").split("\n") if logs else []
        return next((line.strip() for line in reversed(words) if line.strip() and not line.startswith(HINT)), "")[:160]

    def _keep(self, step: Step) -> None:
        """Take a step's results into the record; its trainings are then of no more use."""
        for name in step.results:
            self.record["results"][name] = travel.json_of(self.given.results / name)
        cache = self.given.artifacts / "cache" / "distill"
        self.record["spent"] = sorted(path.parent.name for path in cache.glob("*/stage.json"))

    def _restore(self) -> None:
        """Write the results of earlier calls, which may have been made on another machine."""
        self.given.results.mkdir(parents=True, exist_ok=True)
        for name, content in self.record["results"].items():
            write_json(self.given.results / name, content)

    def _save(self) -> None:
        """Write the record, and all that another machine needs to go on."""
        root, spent = self.given.artifacts, set(self.record["spent"])
        self.record["seconds"] = self.before + time.monotonic() - self.begin
        write_json(root / travel.RECORD, {**self.record, "pieces": {}})
        left = travel.pack(self.record, root, travel.needed(root, spent), self.state)
        self.saved = time.monotonic()
        if left:
            print(f"no room in {self.state}, so trained anew elsewhere: {', '.join(left)}", file=sys.stderr, flush=True)

    def show(self) -> int:
        """Print the table; the exit code of what it says."""
        found: list[Row] = []
        header = ("what", "seconds", "", "result")
        lines = [header]
        for step in steps(self.given):
            entry = self.record["steps"].get(step.name, {"seconds": 0.0, "said": ""})
            status = self._status(step)
            shown = (
                rows(step, self.record["results"], entry["said"])
                if status == "done"
                else [(step.name, status, entry["said"])]
            )
            lines += [(what, f"{entry['seconds']:.0f}", word, said) for what, word, said in shown]
            found += shown
        if self.given.rehearse:
            print("a rehearsal: the numbers mean nothing")
        table(lines)
        print(f"{self.record['seconds']:.0f} s spent so far; state: {self.state}")
        words = {word for _, word, _ in found}
        codes = {"failed": 4, "missed": 5, "undecided": 6, "left": 6, "stopped": 6}
        return next((code for word, code in codes.items() if word in words), 0)


def _stop(running: list[subprocess.Popen[bytes]], seconds: float) -> None:
    """Ask what still runs to end, as Ctrl-C would; end it where it does not within so many seconds."""
    end = time.monotonic() + seconds
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, number)
        while any(process.poll() is None for process in running) and time.monotonic() < end:
            time.sleep(0.1)
    for process in running:
        process.wait()


@contextmanager
def _sharing(shares: bool) -> Iterator[dict[str, str]]:
    """Give the environment of a step's commands; with it processes share the GPU through CUDA MPS where it is there."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if not shares:
        yield environment
        return
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // STUDENTS)))
    if shutil.which(MPS) is None:
        print(f"{MPS} is not there: processes take turns on the GPU", flush=True)
        yield environment
        return
    with tempfile.TemporaryDirectory() as folder:
        environment |= {"CUDA_MPS_PIPE_DIRECTORY": f"{folder}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{folder}/log"}
        for name in ("pipe", "log"):
            (Path(folder) / name).mkdir()
        subprocess.run([MPS, "-d"], env=environment, check=False)
        try:
            yield environment
        finally:
            with suppress(subprocess.TimeoutExpired):
                subprocess.run([MPS], input=b"quit\n", env=environment, check=False, timeout=30)


if __name__ == "__main__":
    main()
