"""The features of this machine's processor that affect results and speed. Imports no large library."""

import platform
from dataclasses import dataclass
from pathlib import Path

# TensorFlow chooses its kernels on x86 and ARM by these, so they may change the last bits of a result.
FEATURES = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16",
    "asimd", "bf16", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class Processor:
    """A processor as described by Linux. On other systems, only its name is known."""

    name: str
    vendor: str
    features: tuple[str, ...]  # those of FEATURES that it has

    @property
    def faster_in_bfloat16(self) -> bool:
        """True if convolutions are faster in bfloat16 than in float32.

        They are with matrix instructions (AMX). With vector instructions alone, they take 1.4 to 2 times as long on
        Intel's processors (docs/decisions/2026-11-27-bfloat16.md). Without either, bfloat16 is emulated, several times
        slower.
        """
        vectors = "avx512_bf16" in self.features and self.vendor != "GenuineIntel"
        return vectors or "amx_bf16" in self.features


def read_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """Read the first core from Linux's `cpuinfo`. Without that file, only the name is known."""
    facts: dict[str, str] = {}
    if cpuinfo.exists():
        lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", facts.get("Features", "")).split()
    name = facts.get("model name", platform.processor() or platform.machine())
    return Processor(name, facts.get("vendor_id", ""), tuple(feature for feature in FEATURES if feature in flags))
