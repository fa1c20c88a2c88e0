"""Serves a Tornado, WSGI or ASGI application in production: ``python runner MODULE:ATTR [options]``, see ``--help``.

Lifecycle of a process:

1. Start: lock the pid file, import and create the application, then bind the socket: every accepted client is served. With
   ``--replace``, the previous process serves until then and is stopped only now.
2. Serve: all Python loggers, including Tornado's three, write one line format to ``--log-to``.
3. Graceful shutdown on SIGTERM or SIGINT: stop accepting connections, close websockets with 1012 (service restart), close
   idle connections, and finish in-flight requests with ``Connection: close``. The process exits with status 0 when all are
   finished or after ``--drain`` seconds. A second signal ends it immediately, with status 1.

The package requires Python 3.11 and, of the application's environment, Tornado 6.5 or newer; with ``--asgi`` also uvicorn.
"""
