"""Which processors are said to multiply bfloat16, by what the kernel says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.training import precision

COMMON = "fpu vme de pse tsc msr pae mce cx8 apic sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c avx2 bmi2 "
AVX512 = "avx512f avx512dq avx512cd avx512bw avx512vl "
X86 = (
    "processor\t: {number}\nvendor_id\t: {vendor}\nmodel name\t: {name}\n"
    "flags\t\t: {flags}\nbugs\t\t: spectre_v1 spectre_v2\n\n"
)
ARM = (
    "processor\t: 0\nBogoMIPS\t: 50.00\n"
    "Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp asimddp sve {more}\nCPU architecture: 8\n\n"
)


def x86(vendor: str, name: str, flags: str) -> str:
    return "".join(X86.format(number=number, vendor=vendor, name=name, flags=COMMON + flags) for number in range(2))


ZEN4 = x86(
    "AuthenticAMD",
    "AMD EPYC 9354 32-Core Processor",
    AVX512 + "avx512ifma avx512_bf16 avx512vbmi avx512_vnni avx512_bitalg",
)
SAPPHIRE_RAPIDS = x86(
    "GenuineIntel",
    "Intel(R) Xeon(R) Platinum 8480+",
    AVX512 + "avx512_vnni avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8",
)


@pytest.mark.parametrize(
    ("text", "multiplies"),
    [
        (ZEN4, True),
        (SAPPHIRE_RAPIDS, True),
        (SAPPHIRE_RAPIDS.replace("avx512_bf16 ", ""), True),  # a virtual machine may show one of the two
        (x86("GenuineIntel", "Intel(R) Core(TM) i9-7980XE", AVX512.rstrip()), False),  # Skylake-X
        (x86("GenuineIntel", "Intel(R) Xeon(R) Gold 6240", AVX512 + "avx512_vnni"), False),  # Cascade Lake
        (x86("GenuineIntel", "a tile of int8 alone", AVX512 + "amx_tile amx_int8"), False),
        (x86("AuthenticAMD", "AMD EPYC 7282 16-Core Processor", "sse4a"), False),  # Zen 2
        (ARM.format(more="i8mm bf16"), False),  # AVX512-BF16 and AMX alone count
        (ARM.format(more="dcpop"), False),
        ("", False),
    ],
    ids=[
        "zen 4",
        "sapphire rapids",
        "amx alone",
        "skylake-x",
        "cascade lake",
        "amx int8",
        "zen 2",
        "arm bf16",
        "arm",
        "empty",
    ],
)
def test_bf16_is_read_from_the_cpu_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, multiplies: bool
) -> None:
    read: list[str] = []

    def place(name: str) -> Path:
        read.append(name)
        return tmp_path / "cpuinfo"

    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(precision, "Path", place)
    assert precision.cpu_has_bf16() is multiplies and read == ["/proc/cpuinfo"]
    assert precision.resolve_precision("auto", "cpu") == ("bf16" if multiplies else "float32")


def test_bf16_is_not_assumed_without_cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (tmp_path / "none", tmp_path):  # no file; one that cannot be read as one
        monkeypatch.setattr(precision, "Path", lambda _, place=place: place)
        assert precision.cpu_has_bf16() is False and precision.resolve_precision("auto", "cpu") == "float32"
