"""`pipeline notify`: a test of the notification channels."""

import typer

from pipeline.cli.app import UNATTENDED, command, console


@command(UNATTENDED, 40)
def notify() -> None:
    """Send a test message to every channel in `PIPELINE_NOTIFY_URLS`, and print for each whether it succeeded.

    Examples:

        PIPELINE_NOTIFY_URLS='mailto://USER:PASSWORD@example.com' pipeline notify
    """
    from pipeline.errors import FAILURE
    from pipeline.notices.send import send_test

    with console.status("sending"):
        deliveries = send_test()
    for delivery in deliveries:
        sentence = f"failed: {delivery.problem}" if delivery.problem else "sent"
        console.print(f"{delivery.channel}: {sentence}", markup=False, soft_wrap=True)
    if any(delivery.problem for delivery in deliveries):
        raise typer.Exit(FAILURE)
