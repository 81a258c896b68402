"""How gunicorn runs the service. `foldlog serve` sets the variables that are read here.

Read in gunicorn's master, before a worker is patched by gevent: nothing here may import psycopg,
which chooses its way to wait when it is imported.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from foldlog.infrastructure.supervisor import exit_with_parent

wsgi_app = "foldlog.scripts.web:create()"
worker_class = "gevent"
bind = os.environ.get("FOLDLOG_BIND", "127.0.0.1:3653")
workers = int(os.environ.get("FOLDLOG_WEB_WORKERS", "2"))
#: connections of one worker; each waiting client holds one
worker_connections = 20_000
backlog = 2_048
keepalive = 75
#: the longest that gunicorn can; a filter of many collections takes some of it
limit_request_line = 8_190
#: a worker that does not answer its master for this long is replaced
timeout = 60
graceful_timeout = 20
#: our own log has a line for each request
accesslog = None
loglevel = "warning"
# The workers' heartbeat files: on a disk they would wait for it now and then.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None


def on_starting(_: Any) -> None:
    exit_with_parent()
