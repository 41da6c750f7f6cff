"""`pipeline predict`: classify images with a registered model."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from pipeline.cli.app import EVERY_DAY, command, console, enter_workspace, print_json

SHOWN = 3  # answers to an image in the table; the JSON has them all


@command(EVERY_DAY, 60)
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Pictures, .npz or idx files.")],
    model: Annotated[
        str, typer.Option(metavar="VERSION|ALIAS", help="Model to use; NAME/VERSION for another registered model.")
    ] = "champion",
    invert: Annotated[bool, typer.Option("--invert", help="Swap dark and bright first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the probability of every class.")] = False,
) -> None:
    """Classify images with the champion: class names in English and Korean, and probabilities.

    A picture is decoded and resized as the training images were: upright by its EXIF data, in grey or colour, of the
    model's size, on the background of its training images. For pictures on paper, if the model expects black, use
    --invert; a note recommends it for pictures that look so.
    `.npz` (with `images`) and idx files must contain uint8 arrays of the model's size.

    The digest of the model file is checked before it is loaded.

    Examples:

        pipeline predict shirt.png
        pipeline predict photos/*.jpg --invert --model 3
        pipeline predict data/raw/t10k-images-idx3-ubyte --json
        pipeline predict shirt.png --model fashion-mnist/champion
    """
    paths = [(path, path.resolve()) for path in images]
    workspace = enter_workspace()
    from pipeline.registry.version_for_prediction import load_registered_model

    with console.status("predicting"):
        registered = load_registered_model(workspace, model)
        import numpy as np

        from pipeline.data.prediction_input import read_pictures
        from pipeline.evaluation.metrics import class_probabilities

        shape, background, contract = registered.model.shape, registered.ground, registered.model.contract
        resizing = contract.resizing if contract else "fit"
        pictures = [
            (str(path) + picture.name.removeprefix(str(place)), picture)
            for path, place in paths
            for picture in read_pictures(place, shape, invert=invert, background=background, resizing=resizing)
        ]
        answers = class_probabilities(registered.model.predict(np.stack([picture.pixels for _, picture in pictures])))
    found: list[dict[str, Any]] = []
    for (name, picture), probabilities in zip(pictures, answers, strict=True):
        ranked = sorted(range(len(registered.classes)), key=lambda label: -probabilities[label])
        classes = [
            {
                "class": registered.classes[label],
                "class_ko": registered.classes_ko[label] if registered.classes_ko else None,
                "probability": round(float(probabilities[label]), 6),
            }
            for label in ranked
        ]
        found.append({"image": name, "classes": classes, "notes": list(picture.notes)})
    if as_json:
        about = {"name": registered.name, "version": registered.version, "aliases": list(registered.aliases)}
        print_json(about | {"predictions": found})
        return
    table = Table("image", "class", "", Column("probability", justify="right"), "notes", box=SIMPLE_HEAD)
    for answer in found:
        for place, of in enumerate(answer["classes"][:SHOWN]):
            head, notes = (answer["image"], "; ".join(answer["notes"])) if place == 0 else ("", "")
            style = "bold" if place == 0 else "dim"
            probability = f"{of['probability']:.1%}"
            table.add_row(Text(head), Text(of["class"], style), of["class_ko"] or "", probability, Text(notes))
    console.print(table)
    aliases = f" ({', '.join(registered.aliases)})" if registered.aliases else ""
    console.print(f"by {registered.name} version {registered.version}{aliases}")
