"""`pipeline predict`: what a registered model calls an image."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from pipeline.cli.app import app, console, enter_workspace, print_json

SHOWN = 3  # answers to an image in the table; the JSON has them all


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="PNG, JPEG, .npz or idx files.")],
    model: Annotated[
        str, typer.Option(metavar="VERSION|ALIAS", help="Whom to ask; NAME/VERSION for another registered model.")
    ] = "champion",
    invert: Annotated[bool, typer.Option("--invert", help="Let dark and bright change places first.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the probability of every class.")] = False,
) -> None:
    """Say what is on an image: the names, in English and Korean, and the probabilities, by the champion.

    A model knows small grey images on the ground of its training images: black for the datasets that come with this
    project. A picture is turned upright (as its camera says) and grey, its transparency is ignored, and if it has
    another size it is scaled, its proportions kept, with that ground around it. With --invert dark and bright change
    places first: for pictures on paper where the model knows black. A note says when a picture looks like that.
    `.npz` (with `images`) and idx files must hold uint8 arrays of the model's own size.

    The model file is compared with its registered digest before it is loaded.

    Examples:

        pipeline predict shirt.png
        pipeline predict photos/*.jpg --invert --model 3
        pipeline predict data/raw/t10k-images-idx3-ubyte --json --model fashion-mnist/champion
    """
    paths = [(path, path.resolve()) for path in images]
    workspace = enter_workspace()
    from pipeline.registry.registered_model import fetch

    with console.status("asking the model"), fetch(workspace, model) as served:
        import numpy as np

        from pipeline.data.pictures import read_pictures
        from pipeline.evaluation.metrics import class_probabilities
        from pipeline.models import archive
        from pipeline.models.inference import predict as ask

        network = archive.load(served.file)
        pictures = [
            (str(path) + picture.name.removeprefix(str(place)), picture)
            for path, place in paths
            for picture in read_pictures(place, network.input_shape[1:], invert=invert, ground=served.ground)
        ]
        answers = class_probabilities(ask(network, np.stack([picture.pixels for _, picture in pictures])))
    found: list[dict[str, Any]] = []
    for (name, picture), probabilities in zip(pictures, answers, strict=True):
        ranked = sorted(range(len(served.classes)), key=lambda label: -probabilities[label])
        classes = [
            {
                "class": served.classes[label],
                "class_ko": served.classes_ko[label] if served.classes_ko else None,
                "probability": round(float(probabilities[label]), 6),
            }
            for label in ranked
        ]
        found.append({"image": name, "classes": classes, "notes": list(picture.notes)})
    if as_json:
        about = {"name": served.name, "version": served.version, "aliases": list(served.aliases)}
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
    aliases = f" ({', '.join(served.aliases)})" if served.aliases else ""
    console.print(f"by {served.name} version {served.version}{aliases}")
