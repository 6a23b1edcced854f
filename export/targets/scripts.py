"""Small programs that run on a remote device, sent as arguments. They need a POSIX shell or Python 3.8.

Each prints a mark and then JSON; a login shell may print something before the mark. An order comes as JSON in the first
argument.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

# Arguments: the folder, the next program, interpreters to try. Prints the folder, the architecture, and what the first
# working interpreter prints.
PROBE = """
umask 077
mkdir -p "$1" && cd "$1" || exit 1
program=$2; shift 2
echo; echo @@compress@@; pwd; uname -m
for python in "$@"; do
  command -v "$python" >/dev/null 2>&1 || continue
  "$python" -E -B -c "$program" 2>/dev/null && break
done
exit 0
"""

PYTHON = """
import json, platform, shutil, struct, sys
if sys.version_info < (3, 8):
    sys.exit(1)
flags = ""
try:
    with open("/proc/cpuinfo") as stream:
        flags = next((line.partition(":")[2].strip() for line in stream if line.startswith("flags")), "")
except OSError:
    pass
print(json.dumps({"executable": sys.executable, "version": list(sys.version_info[:3]), "bits": 8 * struct.calcsize("P"),
                  "glibc": platform.libc_ver()[1], "free": shutil.disk_usage(".").free, "flags": flags}))
"""

# Removes what does not belong to the folder (nobody else uses it) and names what is missing or differs.
# With `sums` null it only reports the free bytes.
COMPARE = """
import hashlib, json, os, shutil, sys
order = json.loads(sys.argv[1])
folder, sums, missing = order["folder"], order["sums"], []
os.makedirs(folder, mode=0o700, exist_ok=True)
if sums is not None:
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if os.path.relpath(path, folder) not in sums:
                os.remove(path)
    for name, digest in sums.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(path, "rb") as stream:
                found = hashlib.sha256(stream.read()).hexdigest()
        except OSError:
            found = None
        if found != digest:
            missing.append(name)
print("\\n@@compress@@" + json.dumps({"missing": missing, "free": shutil.disk_usage(folder).free}))
"""

PACKAGES = "import numpy, onnxruntime; assert hasattr(onnxruntime, 'InferenceSession')"

# Exits 0 if the package index of pip's configuration, or the proxy before it, takes a connection.
NETWORK = """
import os, socket, subprocess, sys, urllib.request
from urllib.parse import urlsplit
index = os.environ.get("PIP_INDEX_URL")
if not index:
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    said = subprocess.run(command, capture_output=True, text=True)
    index = said.stdout.strip() if said.returncode == 0 else ""
if not index:
    from pip._internal.models.index import PyPI  # pip's own default; a host without pip gets its wheels pushed
    index = PyPI.simple_url
parts = urlsplit(urllib.request.getproxies().get(urlsplit(index).scheme) or index)
socket.create_connection((parts.hostname, parts.port or {"http": 80}.get(parts.scheme, 443)), timeout=5).close()
"""

# A wheel is a zip whose content goes to site-packages, so this needs no pip on the device.
INSTALL = """
import json, os, sysconfig, sys, zipfile
folder = json.loads(sys.argv[1])["folder"]
for name in sorted(os.listdir(folder)):
    with zipfile.ZipFile(os.path.join(folder, name)) as archive:
        archive.extractall(sysconfig.get_path("purelib"))
    os.remove(os.path.join(folder, name))
print("\\n@@compress@@{}")
"""

# Runs the verifier with a time limit that holds even if the connection breaks; `code` is null after the limit.
VERIFY = """
import json, os, subprocess, sys
order = json.loads(sys.argv[1])
if os.path.exists(order["answer"]):
    os.remove(order["answer"])
try:
    done = subprocess.run(order["argv"], cwd=order["cwd"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=order["limit"], universal_newlines=True)
    code, said = done.returncode, ((done.stderr or done.stdout).strip().splitlines() or ["no message"])[-1]
except subprocess.TimeoutExpired:
    code, said = None, ""
answer = None
if code is not None and os.path.exists(order["answer"]):
    with open(order["answer"], encoding="utf-8") as stream:
        answer = json.load(stream)
print("\\n@@compress@@" + json.dumps({"code": code, "said": said, "answer": answer}))
"""


def sha256(path: Path) -> str:
    """Return the digest of a local file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
