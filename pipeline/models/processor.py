"""This machine's processor, as far as results and speed depend on it. Imports nothing heavy."""

import platform
from dataclasses import dataclass
from pathlib import Path

# By which TensorFlow's kernels are chosen on x86 and ARM, so that they may change the last bits of a result.
FEATURES = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16",
    "asimd", "bf16", "sve",
)  # fmt: skip


@dataclass(frozen=True)
class Processor:
    """A processor, as Linux describes it; elsewhere only its name is known."""

    name: str
    vendor: str
    features: tuple[str, ...]  # those of FEATURES that it has

    @property
    def faster_in_bfloat16(self) -> bool:
        """Whether convolutions in bfloat16 take less time than in float32.

        With tiles (AMX) they do. With vector instructions alone they take 1.4 to 2 times as long on Intel's processors:
        docs/decisions/2026-11-27-bfloat16.md. Without either, bfloat16 is emulated, several times slower.
        """
        vectors = "avx512_bf16" in self.features and self.vendor != "GenuineIntel"
        return vectors or "amx_bf16" in self.features


def read_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Processor:
    """The first core's description in a file as Linux writes it; without one, what Python can tell."""
    facts: dict[str, str] = {}
    if cpuinfo.exists():
        lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", facts.get("Features", "")).split()
    name = facts.get("model name", platform.processor() or platform.machine())
    return Processor(name, facts.get("vendor_id", ""), tuple(feature for feature in FEATURES if feature in flags))
