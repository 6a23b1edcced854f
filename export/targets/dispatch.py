"""Send a bundle to a target and return the device's answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from export import runtime
from export.targets import Address, Unreachable, VerifySettings, WrongTarget, browser, local, remote
from export.targets.adb import FOLDER, Adb
from export.targets.ssh import Ssh

LOCAL_SECONDS, REMOTE_SECONDS = 900, 3600


def verify(
    bundle: Path,
    address: Address,
    work: Path,
    settings: VerifySettings,
    *,
    limit_seconds: float | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return what `python -m export.verify --json` writes on the target for a bundle.

    Args:
        bundle: the zip.
        address: the parsed target.
        work: a folder for the answer.
        settings: how the verifier runs.
        limit_seconds: how long it may take; None: the target's default.
        log: receives a line about each step.

    Raises:
        Unreachable: the device or its interpreter is not there.
        DeviceFailed: the device could not do the work.
    """
    if address.scheme != "browser":
        settings = replace(settings, provider=address.provider)
    if address.scheme == "local":
        return local.run(bundle, work, settings, limit_seconds or LOCAL_SECONDS + settings.sustained, address.python)
    limit = limit_seconds or REMOTE_SECONDS + settings.sustained
    if address.scheme == "browser":
        return browser.run(address, bundle, settings, limit, log)
    link, address = _linked(address)
    return remote.run(link, address, bundle, settings, limit, log)


def isa(address: Address) -> str:
    """Return the instruction set of a target, as `quantize.target` names it. Raises Unreachable, DeviceFailed."""
    if address.scheme == "browser":
        return "web"
    if address.scheme == "local":
        return runtime.isa()
    return remote.probe(*_linked(address)).isa


def _linked(address: Address) -> tuple[remote.Link, Address]:
    """Return the link to a remote target, and its address with the link's own defaults."""
    if address.scheme == "ssh":
        return Ssh(address), address
    if address.scheme == "adb":
        if address.python is None:
            raise Unreachable(
                f"{address.name}: Android has no Python of its own; name one that has numpy and onnxruntime: "
                f"--target '{address.name}?python=/path'"
            )
        address = replace(address, folder=address.folder or FOLDER)
        return Adb(address), address
    raise WrongTarget(f"{address.name}: there is no link for the scheme {address.scheme!r}")


def describe_failure(answer: dict[str, Any]) -> str | None:
    """Return what is wrong with an answer, in one sentence; None if it is right."""
    if answer["ok"]:
        return None
    wrong = [row for row in answer["models"] if row["ok"] is False]
    if wrong:
        row = wrong[0]
        if (row.get("provider") or {}).get("nodes") == 0:
            return f"{row['file']}: {row['provider']['sentence']}"
        off = "" if row["max_abs_diff"] is None else f", largest logit difference {row['max_abs_diff']:.2g}"
        return f"wrong answers from {row['file']}: it agrees on {row['agreement']:.1%} of {row['images']} images{off}"
    if (answer.get("photos") or {}).get("ok") is False:
        return str(answer["photos"]["sentence"])
    return f"no model in the bundle is meant for {answer['host']['isa']}: nothing was verified"
