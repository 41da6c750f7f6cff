"""`pipeline train`: train on several workers."""

from typing import Annotated

import typer

from pipeline.cli.app import EVERY_DAY, command, console, enter_workspace
from pipeline.process_lifetime import signals_as_exceptions


@command(EVERY_DAY, 15)
def train(
    workers: Annotated[
        str, typer.Option(metavar="HOST:PORT,…", help="An address for each worker, the chief's first. All are equal.")
    ],
    trusted_network: Annotated[
        bool,
        typer.Option("--trusted-network", help="Only trusted people can reach the ports: TensorFlow has no password."),
    ] = False,
) -> None:
    """Train on several processes or machines, which share each batch: run the stages up to train.

    It starts the workers of this machine, and ends all of them if one fails.
    Run the same command on each other machine of the list, with the same checkout, data and params.
    After a failure, the same command continues from the last complete epoch.

    Example:

        pipeline train --workers 127.0.0.1:9001,127.0.0.1:9002 --trusted-network
    """
    enter_workspace()
    from pipeline.scale import addresses, training
    from pipeline.stages.entrypoint import read_params

    params, parsed = read_params(), addresses.parse_addresses(workers)
    addresses.require_trusted_network(parsed, trusted_network)
    with signals_as_exceptions():
        training.train(params, parsed, lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
    if parsed[0].is_local:
        console.print("the training is complete. To evaluate and register the model: pipeline run")
