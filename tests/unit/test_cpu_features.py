"""What `/proc/cpuinfo` tells of a processor, and which precision that makes the faster one."""

from pathlib import Path

import pytest

from pipeline.models.cpu_features import read_processor

CORE = "processor\t: {core}\nvendor_id\t: {vendor}\nmodel name\t: Some Processor\nflags\t\t: fpu avx2 {flags}\n"


def described(folder: Path, *cores: str) -> Path:
    file = folder / "cpuinfo"
    file.write_text("\n".join(cores))
    return file


@pytest.mark.parametrize(
    ("vendor", "flags", "bfloat16"),
    [
        ("GenuineIntel", "avx512f", False),
        ("GenuineIntel", "avx512f avx512_bf16", False),
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16 amx_tile", True),
        ("AuthenticAMD", "avx512f avx512_bf16", True),
        ("AuthenticAMD", "", False),
    ],
)
def test_bfloat16_is_for_processors_that_are_faster_in_it(
    tmp_path: Path, vendor: str, flags: str, bfloat16: bool
) -> None:
    processor = read_processor(described(tmp_path, CORE.format(core=0, vendor=vendor, flags=flags)))
    assert processor.faster_in_bfloat16 is bfloat16
    assert processor.features == ("avx2", *(flag for flag in flags.split() if flag != "amx_tile"))


def test_the_first_core_speaks_for_all(tmp_path: Path) -> None:
    cores = [CORE.format(core=core, vendor="AuthenticAMD", flags=flags) for core, flags in enumerate(("fma", "sve"))]
    processor = read_processor(described(tmp_path, *cores))
    assert (processor.name, processor.features) == ("Some Processor", ("avx2", "fma"))


def test_where_no_file_describes_it_it_has_a_name_and_no_features(tmp_path: Path) -> None:
    processor = read_processor(tmp_path / "nothing")
    assert processor.name
    assert (processor.vendor, processor.features, processor.faster_in_bfloat16) == ("", (), False)


def test_arm_has_another_word_for_flags(tmp_path: Path) -> None:
    processor = read_processor(described(tmp_path, "processor\t: 0\nFeatures\t: fp asimd bf16\n"))
    assert processor.features == ("asimd", "bf16")
