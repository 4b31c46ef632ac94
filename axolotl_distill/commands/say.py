"""What a command tells people while it runs."""

import click

from axolotl_distill.show import printable, redact


def say(text: str) -> None:
    """Lines for people, on stdout."""
    click.echo(printable(text, most=None, lines=True))


def warn(text: str) -> None:
    """What should worry the user, on stderr."""
    shown = printable(redact(text), most=None, lines=True)
    click.secho(f"\nWARNING: {shown}", fg="yellow", bold=True, err=True)
