"""A server of an nginx upstream, as the templates and what a switch writes have it."""

from __future__ import annotations


def server_line(address: str, weight: int = 1, *, backup: bool = False) -> str:
    """Return the line of an upstream for a server, the one for files that ``include`` names too.

    ``max_fails=0``: nginx's default takes a server out for ten seconds after one refused connection, and so turns the
    restart of one process into refused requests.
    """
    share = f" weight={weight}" if weight != 1 else ""
    return f"server {address}{share} max_fails=0{' backup' if backup else ''};"
