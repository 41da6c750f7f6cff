"""What determines a worker's bytes, and how it differs from another's."""

from dataclasses import replace

from pipeline.scale.software import describe_software


def test_equal_software_has_no_differences() -> None:
    ours = describe_software()
    assert ours.find_differences(replace(ours)) == []
    assert ours.packages["numpy"].count(".") == 2
    assert "pipeline/data/decoders.py" in ours.code


def test_every_difference_is_named_and_changes_the_digest() -> None:
    ours = describe_software()
    code = {**ours.code, "pipeline/data/decoders.py": "0", "pipeline/new.py": "1"}
    del code["pipeline/errors.py"]
    for other, expected in (
        (replace(ours, python="3.10"), [f"Python 3.10 instead of {ours.python}"]),
        (
            replace(ours, packages={**ours.packages, "pillow": "9.1.0"}),
            [f"pillow 9.1.0 instead of {ours.packages['pillow']}"],
        ),
        (
            replace(ours, code=code),
            ["another pipeline/data/decoders.py", "another pipeline/errors.py", "another pipeline/new.py"],
        ),
    ):
        assert ours.find_differences(other) == expected
        assert ours.digest != other.digest
    everything = ours.find_differences(replace(ours, code={}))
    assert everything[-1] == f"and {len(ours.code) - 3} more files"
