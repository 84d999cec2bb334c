"""What these tests share: the sessions of one sync serve the next."""

from __future__ import annotations

from tests.support.open_sessions import sessions_stay_open

__all__ = ["sessions_stay_open"]
