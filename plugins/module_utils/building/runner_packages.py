"""The packages that the runner needs to serve an app, for environments whose app does not name them."""

from __future__ import annotations

from collections.abc import Mapping

from ansible_collections.funnel.tornado.plugins.module_utils.app.model import App

#: Requirements by the key of ``run``, then by the directory of the package in site-packages: versions that the runner is tested
#: with. An app that needs others names them in its own dependencies.
RUNNER_PACKAGES: Mapping[str, Mapping[str, str]] = {
    "app": {"tornado": "tornado>=6.5,<7"},
    "wsgi": {"tornado": "tornado>=6.5,<7"},
    "asgi": {"tornado": "tornado>=6.5,<7", "uvicorn": "uvicorn>=0.30,<1", "websockets": "websockets>=13"},
}


def runner_packages(app: App) -> Mapping[str, str]:
    """Return the requirements of the runner by the directory of the package; empty if the app has a server of its own."""
    kinds = (kind for kind in RUNNER_PACKAGES if getattr(app.run, kind) is not None)
    packages = {package: requirement for kind in kinds for package, requirement in RUNNER_PACKAGES[kind].items()}
    return packages | ({"uvloop": "uvloop>=0.17"} if app.run.loop == "uvloop" else {})
