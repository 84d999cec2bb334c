"""The embedded Postgres, which one user reaches: started when a process needs it, stopped by the last one."""

from rowvec.postgres.embedded.server import (
    EmbeddedPostgres,
    embedded_database_url,
    release_all,
    release_postgres,
    start_postgres,
)

__all__ = ["EmbeddedPostgres", "embedded_database_url", "release_all", "release_postgres", "start_postgres"]
