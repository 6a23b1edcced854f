"""Targets that verify a bundle: `local`, `browser`, `ssh://user@host[:port][/dir]`, `adb://SERIAL`.

This code runs where the model is made, never on the device. This module needs only the standard library: a recipe's
target is checked even where neither numpy nor onnxruntime is installed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

SCHEMES = ("ssh", "adb")
LOCAL_OPTIONS = ("python", "provider")
OPTIONS = ("python", "wheels", "config", "provider")
BROWSER_OPTIONS = ("binary", "ort", "provider")
BROWSER_PROVIDERS = ("wasm", "webgpu", "all")
# No character that a shell, scp or adb would read as more than a letter.
_SAFE = re.compile(r"[A-Za-z0-9_.~/][A-Za-z0-9_./~+@:=-]*")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")


class TargetError(Exception):
    """A device could not be used; the message is one sentence."""


class WrongTarget(TargetError):
    """The target's name cannot be parsed, or an option does not fit the target."""


class Unreachable(TargetError):
    """The device, its interpreter or a package for it is not there."""


class DeviceFailed(TargetError):
    """The device was reached but could not do the work."""


@dataclass(frozen=True)
class Address:
    """A parsed target.

    Attributes:
        name: the target without options, as reports show it.
        scheme: local, browser, ssh or adb.
        host: of adb, the serial.
        user, port: of ssh.
        folder: where the bundle lies on the device; None: the default.
        python: an interpreter that has numpy and onnxruntime.
        wheels: auto or push: packages come from here even if the device has a network.
        config: of ssh, its configuration file.
        binary: of browser, Chromium or Chrome; None: the one on PATH.
        ort: of browser, a folder with onnxruntime-web; None: from npm, by the pinned lock file.
        provider: an execution provider; of browser, wasm, webgpu or all; None: wasm, and WebGPU if there is a GPU.
    """

    name: str
    scheme: str
    host: str = ""
    user: str | None = None
    port: int | None = None
    folder: str | None = None
    python: str | None = None
    wheels: str = "auto"
    config: str | None = None
    binary: str | None = None
    ort: str | None = None
    provider: str | None = None

    @property
    def shown(self) -> str:
        """Return the target as reports show it: another execution provider counts as another device."""
        return self.name if self.provider in (None, "wasm", "all") else f"{self.name}?provider={self.provider}"


@dataclass(frozen=True)
class VerifySettings:
    """How the verifier runs on the device.

    `name` separates the bundles of several recipes in one folder; `sustained` is seconds without a pause.
    """

    name: str = "model"
    threads: int = 1
    repeats: int = 700
    preprocess: str | None = None
    latency: bool = True
    provider: str | None = None
    sustained: int = 0

    def arguments(self) -> list[str]:
        """Return the arguments of `export.verify`, without the answer's file and the folder."""
        more = ["--preprocess", self.preprocess] if self.preprocess else []
        more += ["--provider", self.provider] if self.provider else []
        more += ["--sustained", str(self.sustained)] if self.sustained else []
        more += [] if self.latency else ["--no-latency"]
        return ["--threads", str(self.threads), "--repeats", str(self.repeats), *more]


def parse(text: str) -> Address:
    """Parse a target's name as typed. Raises WrongTarget."""
    parts = urlsplit(text)
    if text.partition("?")[0] == "local":
        local = _options(text, parts.query, LOCAL_OPTIONS)
        return Address("local", "local", python=local.get("python"), provider=_provider(text, local))
    if text.partition("?")[0] == "browser":
        return _browser(text, _options(text, parts.query, BROWSER_OPTIONS))
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise WrongTarget(f"--target {text}: expected local, browser, ssh://user@host[:port][/folder] or adb://SERIAL")
    options = _options(text, parts.query, OPTIONS)
    if options.get("wheels", "auto") not in ("auto", "push"):
        raise WrongTarget(f"--target {text}: wheels is auto or push, not {options['wheels']!r}")
    name = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    folder = _folder(text, unquote(parts.path))
    python = options.get("python")
    if python is not None and not _SAFE.fullmatch(python):
        raise WrongTarget(f"--target {text}: python={python!r} must be a plain path")
    common: dict[str, Any] = {
        "name": name,
        "scheme": parts.scheme,
        "folder": folder,
        "python": python,
        "wheels": options.get("wheels", "auto"),
    }
    common["provider"] = _provider(text, options)
    if parts.scheme == "adb":
        if not re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_.:-]*", parts.netloc):
            raise WrongTarget(f"--target {text}: {parts.netloc!r} is not a serial as `adb devices` lists it")
        return Address(host=parts.netloc, **common)
    if parts.scheme == "ssh":
        return _ssh(text, parts, options, common)
    raise WrongTarget(f"--target {text}: the scheme {parts.scheme!r} has no address of its own")


def _ssh(text: str, parts: SplitResult, options: dict[str, str], common: dict[str, Any]) -> Address:
    try:
        port = parts.port
    except ValueError:
        raise WrongTarget(f"--target {text}: the port must be a number up to 65535") from None
    host, user = parts.hostname or "", parts.username
    if not _HOST.fullmatch(host) or (user is not None and not _USER.fullmatch(user)) or parts.password is not None:
        raise WrongTarget(
            f"--target {text}: expected ssh://user@host[:port][/folder], without a password (ssh uses your keys)"
        )
    return Address(host=host, user=user, port=port, config=options.get("config"), **common)


def _options(text: str, query: str, known: tuple[str, ...]) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in sorted(set(options) - set(known)):
        raise WrongTarget(f"--target {text}: no option {name!r}; there are {', '.join(known)}")
    return options


def _provider(text: str, options: dict[str, str]) -> str | None:
    provider = options.get("provider")
    if provider is not None and not re.fullmatch(r"[A-Za-z0-9_]+", provider):
        raise WrongTarget(
            f"--target {text}: provider is the name of an execution provider, such as openvino, not {provider!r}"
        )
    return provider


def _browser(text: str, options: dict[str, str]) -> Address:
    provider = options.get("provider")
    if provider is not None and provider not in BROWSER_PROVIDERS:
        raise WrongTarget(f"--target {text}: provider is wasm, webgpu or all, not {provider!r}")
    return Address("browser", "browser", binary=options.get("binary"), ort=options.get("ort"), provider=provider)


def _folder(text: str, path: str) -> str | None:
    """Return the device's folder: `/dir` is absolute, `/~/dir` below the user's home."""
    path = path.rstrip("/")
    if not path:
        return None
    relative = path[3:] if path.startswith("/~/") else path
    if not _SAFE.fullmatch(relative) or ".." in relative.split("/") or "~" in relative:
        raise WrongTarget(f"--target {text}: the folder {path!r} may hold letters, digits and . _ - / + = @ only")
    return relative
