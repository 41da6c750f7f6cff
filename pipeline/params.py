"""`params.yaml` as frozen, typed values. Unknown keys, and combinations that cannot work, are refused here."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AllowInfNan, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import ParamsError, remedy_for_committed
from pipeline.files import parse_yaml
from pipeline.rooms import find_rooms
from pipeline.workspace import OWNER

PARAMS_FILE = Path("params.yaml")

Loss = Literal["sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy"]
DataParallel = Literal["none", "mirrored", "multi_worker"]
# Strict: `true` is no number, and a number is no switch.
Int = Annotated[int, Strict()]
Float = Annotated[float, Strict(), AllowInfNan(False)]
Bool = Annotated[bool, Strict()]
Fraction = Annotated[Float, Field(ge=0, le=1)]


class Section:
    """Part of the file: a frozen dataclass that pydantic fills and checks."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    def find_conflicts(self) -> list[str]:
        """Describe values that are valid each but do not fit together."""
        return []


S = TypeVar("S", bound=Section)


@dataclass(frozen=True, kw_only=True)
class DatasetParams(Section):
    """Which images to work on."""

    name: str = Field(min_length=1, description="a file of data/catalog/, without .yaml, or `tiny`, which is generated")
    path: str = Field(
        min_length=1, description="a directory whose idx files, when there are any, replace the catalogue's"
    )
    positive_classes: tuple[str | int, ...] = Field(
        description="the classes to recognise, by English name or number, when train.loss is binary_crossentropy"
    )
    window: Annotated[Int, Field(gt=0)] | None = Field(
        description="batches, the newest, that are trained on whole, and a sample of what is older; null: all images"
    )
    window_older: Float = Field(
        gt=0, le=1, description="with a window, share of each class that is kept of older batches and the dataset's own"
    )

    @property
    def share_of_own(self) -> float:
        """Share of the dataset's own training images that the window keeps."""
        window, share = self.window, self.window_older  # both read, whatever they are: a stage declares both
        return 1.0 if window is None else share


@dataclass(frozen=True, kw_only=True)
class ValidateParams(Section):
    """Thresholds of the data validation. Null: that of the dataset's catalogue entry, else one for every dataset."""

    max_class_imbalance: Annotated[
        Float | None, Field(ge=0, description="a class's images against the classes' mean; 0.5: half more")
    ] = None
    min_contrast: Annotated[
        Fraction | None, Field(description="standard deviation of an image's pixels, 0 to 1; below it, it is blank")
    ] = None
    max_blank_fraction: Annotated[Fraction | None, Field(description="blank images")] = None
    max_white: Annotated[
        Fraction | None, Field(description="share of an image's pixels at 255; above it, it is saturated")
    ] = None
    max_saturated_fraction: Annotated[Fraction | None, Field(description="saturated images")] = None
    max_duplicate_fraction: Annotated[
        Fraction | None, Field(description="images that occur more than once within a split")
    ] = None
    max_mirrored_fraction: Annotated[Fraction | None, Field(description="images whose mirror image is there too")] = (
        None
    )
    min_pixel_range: Annotated[
        Fraction | None, Field(description="a split's brightest less its darkest pixel, 0 to 1")
    ] = None
    min_class_separation: Annotated[
        Fraction | None, Field(description="share of a simple feature's variance that classes explain")
    ] = None
    max_mean_shift: Annotated[
        Fraction | None, Field(description="mean pixel value, 0 to 1, against the catalogue's reference")
    ] = None
    max_std_shift: Annotated[Fraction | None, Field(description="standard deviation of the pixel values, likewise")] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class SplitParams(Section):
    """How the validation split is carved from the training images."""

    seed: Int = Field(ge=0)
    validation_fraction: Float = Field(gt=0, lt=1, description="of the training images")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Section):
    """Every hyperparameter of one training, resolved."""

    network: Literal["mlp", "cnn"] = Field(description="a network of pipeline.models.networks")
    widths: tuple[Annotated[Int, Field(gt=0)], ...] = Field(
        min_length=1, description="units of each layer of the mlp, channels of each block of the cnn"
    )
    whitening: Int = Field(
        ge=0, le=7, description="cnn: side of the patches that a first, frozen layer whitens; 0: none"
    )
    pool_stem: Bool = Field(
        description="cnn: max-pooling before the first block, which leaves it and all others a quarter of the pixels"
    )
    epochs: Int = Field(gt=0)
    batch_size: Int = Field(gt=0)
    optimizer: Literal["adam", "adamw", "sgd", "muon"]
    learning_rate: Float = Field(gt=0, description="its highest value")
    vector_learning_rate: Float = Field(gt=0, description="muon: of what Adam updates: biases and the last layer")
    momentum: Float = Field(ge=0, lt=1, description="sgd (Nesterov's) and muon")
    weight_decay: Float = Field(ge=0, description="muon: of what Adam updates alone")
    schedule: Literal["constant", "linear", "cosine"] = Field(description="of the learning rate, after the warm-up")
    warmup_fraction: Fraction = Field(description="of all steps, over which the learning rate rises from zero")
    label_smoothing: Float = Field(ge=0, lt=1)
    weight_average: Float = Field(
        ge=0, lt=1, description="share of the past in a moving average of the weights; 0: none"
    )
    patience: Int = Field(
        ge=0, description="epochs without a better validation accuracy before training stops; 0: never"
    )
    flip: Bool = Field(description="mirror training images in turns, where the dataset's classes survive it")
    shift: Int = Field(ge=0, description="random translation of training images, in pixels")
    erase: Int = Field(ge=0, description="random erasing of training images, largest side in pixels")
    erase_share: Fraction = Field(description="of the images, if any are erased")
    tta: Literal["none", "flip", "shift"] = Field(
        description="the saved model averages over the mirrored image, if training mirrors, or over shifts too"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(description="of the computation; weights stay float32")
    xla: Literal["auto", "always", "never"] = Field(
        description="compile the training of an mlp with XLA; auto: on a GPU"
    )


@dataclass(frozen=True, kw_only=True)
class TrainParams(Section):
    """What to train, and how: the preset's values under the keys that `train` sets itself."""

    preset: str = Field(description="a name under `presets`")
    seed: Int = Field(
        ge=0, lt=2**32, description="of the initial weights, the order of the images and their augmentation"
    )
    loss: Loss = Field(description="it decides the output layer and the label encoding")
    # The keys with a default are newer than release 0.1.0, whose params.yaml can still be used.
    class_weights: Literal["none", "balanced"] = Field(
        default="none",
        description="balanced: classes have equal shares of the loss, and the best epoch the best balanced accuracy",
    )
    memory_limit_mb: Int = Field(
        gt=0, description="for images, in MB: those of train and validation stay in memory, or are streamed through it"
    )
    data_parallel: DataParallel = Field(description="the devices or machines that share each batch")
    quantize: Literal["none", "int8"] = Field(
        default="none", description="also write the model in int8, as model.int8.tflite"
    )
    quantize_max_drop: Fraction = Field(
        default=0.005,
        description="int8: accuracy on the validation images that the model may lose by it; train fails beyond it",
    )
    settings: TrainSettings


@dataclass(frozen=True, kw_only=True)
class EvaluateParams(Section):
    """The absolute gate. A model that misses one threshold is rejected."""

    min_accuracy: Fraction = Field(description="on the test split")
    min_balanced_accuracy: Fraction | None = Field(
        default=None, description="mean recall of the classes, each with the same weight; null: not checked"
    )
    min_class_recall: Fraction = Field(description="of the worst class")
    max_loss: Float = Field(gt=0, description="mean cross-entropy on the test split, in nats")
    max_model_bytes: Int = Field(gt=0, description="size of the model file")


@dataclass(frozen=True, kw_only=True)
class RegisterParams(Section):
    """What becomes of a model that passed the gate: the champion rule."""

    first_model: Literal["champion", "challenger"] = Field(description="alias given to a dataset's first model")
    rule: Literal["better", "not_worse"] = Field(
        description="what promotes a challenger: better than the champion beyond chance, or no worse than by the margin"
    )
    alpha: Float = Field(
        gt=0, lt=1, description="chance of one wrong promotion, over all challengers judged on the same test images"
    )
    min_gain: Fraction = Field(description="better: accuracy gained at least, however certain the gain is")
    margin: Float = Field(gt=0, le=1, description="not_worse: the interval must rule out that more accuracy is lost")
    max_class_drop: Fraction = Field(
        description="veto: recall that a class loses beyond chance; equal models are vetoed in 5 % of cases at most"
    )
    max_ece: Fraction = Field(description="veto: expected calibration error of the challenger")
    max_multiply_adds: Int = Field(gt=0, description="veto: of the challenger's network, for one view of one image")
    worn_out_after: Int = Field(gt=0, description="challengers after which the same test images are called worn out")


@dataclass(frozen=True, kw_only=True)
class Params(Section):
    """The sections of `params.yaml` that the stages read, presets resolved. A subclass adds those of the rooms."""

    dataset: DatasetParams
    validate: ValidateParams
    split: SplitParams
    train: TrainParams
    evaluate: EvaluateParams
    register: RegisterParams

    def section(self, kind: type[S]) -> S:
        """Return a room's section.

        Raises:
            ParamsError: the file is of a commit from before this section.
        """
        for value in vars(self).values():
            if isinstance(value, kind):
                return value
        raise ParamsError(f"{PARAMS_FILE} lacks the section of {kind.__name__}", remedy="pipeline schema")


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read `params.yaml`, resolve the preset, and refuse what cannot run.

    Raises:
        ParamsError: naming every key at fault and what it should be.
    """
    remedy = f"correct {path}: `pipeline schema` lists what each key may be, `git diff {path}` what was edited"
    try:
        raw = parse_yaml(path.read_bytes())
    except FileNotFoundError:
        raise ParamsError(f"{path} is missing", remedy=remedy_for_committed(path)) from None
    except ValueError as error:
        raise ParamsError(f"{path} is not YAML", found=str(error), remedy=remedy_for_committed(path)) from None
    # The checkout of a retraining has the file of its commit.
    return parse_params(raw, str(path), remedy=remedy, of_commit=(path.parent / OWNER).is_file())


def parse_params(
    raw: Any, name: str = str(PARAMS_FILE), *, remedy: str = "pipeline schema", of_commit: bool = False
) -> Params:
    """Turn the content of `params.yaml` into `Params`.

    Args:
        name: the file, for error messages.
        remedy: the remedy of the error.
        of_commit: the file is of another commit, whose project may have had other rooms: sections of rooms that are not
            here are ignored, and sections of rooms that are here may be absent.

    Raises:
        ParamsError: naming every key at fault and what it should be.
    """
    problems: list[str] = []
    if not isinstance(raw, Mapping):
        raise ParamsError(
            f"{name} is not a mapping", expected="sections such as dataset, train, evaluate", remedy=remedy
        )
    presets = raw.get("presets") or {}
    for preset in presets:
        _check(TrainSettings, presets[preset], f"presets.{preset}", problems)
    sections = {key: value for key, value in raw.items() if key != "presets"}
    kind = _params_type(frozenset(sections) if of_commit else None)
    if of_commit:
        known = {field.name for field in dataclasses.fields(kind)}
        sections = {key: value for key, value in sections.items() if key in known}
    else:
        sections = {key: {} for key, kind in _room_sections().items() if _has_defaults(kind)} | sections
    if isinstance(sections.get("train"), Mapping):
        sections["train"] = _resolve_train(sections["train"], presets, problems)
    params = None if problems else _check(kind, sections, "", problems)
    if params is not None:
        problems += _find_conflicts(params)
        for section in vars(params).values():
            problems += section.find_conflicts()
    if params is None or problems:
        raise ParamsError(f"{name} cannot be used", found="\n             ".join(problems), remedy=remedy)
    return params


def params_schema() -> dict[str, Any]:
    """The JSON Schema of `params.yaml`, as it stands in the file: presets apart, `train` keys that may be null."""
    schema = TypeAdapter(_params_type()).json_schema()
    definitions = schema["$defs"]
    settings, train = definitions["TrainSettings"], definitions["TrainParams"]
    del train["properties"]["settings"]
    train["required"].remove("settings")
    for key, value in settings["properties"].items():
        train["properties"][key] = {"anyOf": [value, {"type": "null"}], "description": "null: the preset's value"}
        train["required"].append(key)
    schema["properties"]["presets"] = {"type": "object", "additionalProperties": {"$ref": "#/$defs/TrainSettings"}}
    schema["required"].append("presets")
    return schema


@cache
def _params_type(present: frozenset[str] | None = None) -> type[Params]:
    """Return `Params` with the sections of the rooms, or of those that are `present` in the file."""
    sections = [(key, kind) for key, kind in _room_sections().items() if present is None or key in present]
    return dataclasses.make_dataclass("Params", sections, bases=(Params,), frozen=True, kw_only=True)


def _room_sections() -> dict[str, type[Section]]:
    return {room.section[0]: resolve_name(room.section[1]) for room in find_rooms().values() if room.section}


def _has_defaults(kind: Any) -> bool:
    """Return True if a file may lack the section: it is of a project from before the room."""
    defaults: list[Any] = [field.default for field in dataclasses.fields(kind)]
    return all(isinstance(default, FieldInfo) and not default.is_required() for default in defaults)


def _resolve_train(train: Mapping[str, Any], presets: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    overridable = {field.name for field in dataclasses.fields(TrainSettings)}
    own = {key: value for key, value in train.items() if key not in overridable}
    overrides = {key: value for key, value in train.items() if key in overridable and value is not None}
    problems += [f"train.{key} is missing: null leaves it to the preset" for key in sorted(overridable - set(train))]
    preset: Any = train.get("preset")
    if preset not in presets:
        problems.append(
            f"train.preset is {preset!r}, not one of {', '.join(map(str, presets))}{_near(preset, presets)}"
        )
        return own
    if not isinstance(presets[preset], Mapping):
        return own
    return {**own, "settings": {**presets[preset], **overrides}}


def _check(kind: Any, value: Any, prefix: str, problems: list[str]) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        problems += [_in_words(detail, prefix, kind) for detail in error.errors()]
        return None


def _in_words(detail: Any, prefix: str, kind: Any) -> str:
    """One pydantic error as a line: the key as it stands in the file, and what is wrong with it."""
    parts = [str(part) for part in detail["loc"] if part != "settings"]
    key = ".".join([prefix, *parts] if prefix else parts)
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = _near(parts[-1], _all_keys(kind))
        if len(parts) == 1 and not prefix:
            near = f"{near or '.'} No part of this project reads this section: delete it if its room was deleted"
        return f"{key} is not a parameter{near}"
    if detail["type"] in ("missing", "missing_argument"):
        return f"{key} is missing"
    message = detail["msg"][:1].lower() + detail["msg"][1:]
    return f"{key} is {detail['input']!r}: {message}"


def _all_keys(kind: Any) -> list[str]:
    schema = TypeAdapter(kind).json_schema()
    objects = [schema, *schema.get("$defs", {}).values()]
    return [key for item in objects for key in item.get("properties", {})]


def _near(word: Any, known: Any) -> str:
    close = difflib.get_close_matches(str(word), [str(key) for key in known], n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _find_conflicts(params: Params) -> list[str]:
    """Describe combinations of sections whose values are valid each but do not fit together."""
    positive, loss = params.dataset.positive_classes, params.train.loss
    problems = []
    if loss == "binary_crossentropy" and not positive:
        problems.append(
            "train.loss is binary_crossentropy, which trains one sigmoid unit to answer yes or no, but "
            "dataset.positive_classes is empty, so nothing says which classes are a yes: name them there, "
            "or choose sparse_categorical_crossentropy to tell all classes apart"
        )
    if loss != "binary_crossentropy" and positive:
        problems.append(
            f"dataset.positive_classes is {list(positive)}, a yes-or-no question, but train.loss is {loss}, which"
            " trains a softmax over all classes: set train.loss to binary_crossentropy, or empty "
            "dataset.positive_classes"
        )
    if params.train.data_parallel != "none" and params.train.settings.xla == "always":
        problems.append(
            f"train.xla is always, but train.data_parallel is {params.train.data_parallel}: XLA compiles for one "
            "device; set train.xla to auto or never"
        )
    if params.train.settings.network == "cnn" and params.train.settings.xla == "always":
        problems.append(
            "train.xla is always, but train.network is cnn: XLA has no deterministic gradient of its max-pooling; set "
            "train.xla to auto or never"
        )
    return problems
