"""The contract of a model: what it takes and answers, and the digests of its files.

`train` writes three files. `model.keras` can be trained further. `model.tflite` gives the same answers without
TensorFlow: it is evaluated and served. `contract.json` describes both. With `train.quantize`, a fourth file,
`model.int8.tflite`, is a smaller and less exact form of the served one. Who uses a model reads its contract, and never
the parameters of a workspace, which may have changed since. This module does not import TensorFlow.
"""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from pipeline.errors import ModelError
from pipeline.files import file_digest, write_json
from pipeline.models.tasks import Task, create_task
from pipeline.params import Loss

KERAS_FILE, LITERT_FILE, CONTRACT_FILE = "model.keras", "model.tflite", "contract.json"
INT8_FILE = "model.int8.tflite"
QUANTIZED_FOLDER = "quantized"  # beside the other files; a note without an int8 file, because DVC expects an output

STRICT = ConfigDict(extra="forbid")
Count = Annotated[int, Field(gt=0)]
Byte = Annotated[int, Field(ge=0, le=255)]
Ground = Byte | tuple[Byte, Byte, Byte]  # background of images: grey value, or red, green and blue
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ContractTask:
    """The question that the model answers."""

    loss: Loss
    units: Count  # of the output layer
    positive_classes: tuple[str, ...]  # the classes that are a yes; empty unless the model answers yes or no


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportCheck:
    """The difference between the answers of the two files on the validation images."""

    images: int
    largest_difference: float  # of two probabilities; rounded up
    other_top_class: int  # images for which another class is the most probable one


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Int8Check:
    """The int8 file of a model, compared with `model.tflite` on the validation images."""

    sha256: Digest
    images: int
    accuracy: float
    float_accuracy: float  # of `model.tflite`
    other_top_class: int  # images for which another class is the most probable one


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Contract:
    """What a model takes and answers."""

    dataset: str
    classes: Annotated[tuple[str, ...], Field(min_length=2)]  # of the dataset, in English, in the order of the labels
    classes_ko: tuple[str, ...]  # in Korean; empty if the dataset has no Korean names
    height: Count
    width: Count
    channels: Literal[1, 3] = 1
    colour_order: Literal["grey", "rgb"] = "grey"
    ground: Ground  # of the training images
    # Of a picture of another size, by Lanczos resampling that keeps its proportions. "fit": fit it into the model's
    # size, and pad it with `ground`. "crop": fill the model's size, and cut off what is left over on two sides.
    resizing: Literal["fit", "crop"] = "fit"
    task: ContractTask
    keras_sha256: Digest
    litert_sha256: Digest
    check: ExportCheck
    int8: Int8Check | None = None  # None: the model has no int8 file, and `contract.json` does not have this key

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        kinds = self.channels == 3, self.colour_order == "rgb", isinstance(self.ground, tuple)
        if len(set(kinds)) > 1:
            raise ValueError("channels, colour_order and ground: one is for grey images, another for colour")
        if len(self.classes_ko) not in (0, len(self.classes)):
            raise ValueError("classes_ko: a name for each class, or none")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image: (height, width), or in colour (height, width, 3)."""
        return (self.height, self.width) if self.channels == 1 else (self.height, self.width, self.channels)

    @property
    def answers_ko(self) -> tuple[str, ...]:
        """The names of the possible answers in Korean: the dataset's, or no and yes in its terms; empty without any."""
        if not self.classes_ko or not (positive := self.create_task().positive):
            return self.classes_ko
        return ("기타", " 또는 ".join(self.classes_ko[label] for label in positive))

    def create_task(self) -> Task:
        """Create the task with the possible answers and the encoding of labels.

        Raises:
            ModelError: loss, classes and positive classes do not fit together.
        """
        return create_task(self.task.loss, self.classes, self.task.positive_classes)


def require_keras_file(path: Path, contract: Contract) -> None:
    """Refuse a `model.keras` that is not the one of the contract.

    Raises:
        ModelError: it is missing, damaged, or of another model.
    """
    if not path.is_file():
        raise ModelError(f"{path} is missing", remedy="dvc repro train")
    if (digest := file_digest(path)) != contract.keras_sha256:
        raise ModelError(
            f"{path} is not the file of its contract: it is damaged, or of another model",
            expected=f"SHA-256 {contract.keras_sha256}",
            found=digest,
            remedy=f"rm {shlex.quote(str(path))} && dvc checkout train",
        )


def write_contract(path: Path, contract: Contract) -> None:
    """Write the file that `read_contract` reads. The same contract gives the same bytes."""
    write_json(path, {key: value for key, value in asdict(contract).items() if key != "int8" or value})


def read_contract(path: Path) -> Contract:
    """Read a contract.

    Raises:
        ModelError: the file is missing, or is not a contract.
    """
    try:
        contract = TypeAdapter(Contract).validate_json(path.read_bytes())
        contract.create_task()
        return contract
    except FileNotFoundError:
        raise ModelError(f"{path} is missing", remedy="dvc repro train") from None
    except ValidationError as error:
        found = "; ".join(".".join(map(str, detail["loc"])) + f" {detail['msg']}" for detail in error.errors()[:3])
    except ModelError as error:
        found = error.problem
    raise ModelError(
        f"{path} is damaged", expected="a contract that train wrote", found=found, remedy="dvc checkout train"
    )
