"""The Prefect server that the user has named, as Prefect itself finds it, without importing Prefect if that can be
avoided."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, distribution
from pathlib import Path
from typing import Any

from rowvec.errors import MachineError

# Files that can name a server too, and what they then contain. Only Prefect itself can read them, in 0.7 s.
_SETTINGS = {".env": b"prefect_", "pyproject.toml": b"[tool.prefect"}
# The files with Prefect's settings in TOML, and the tables that lead to them.
_TABLES = {"prefect.toml": (), "pyproject.toml": ("tool", "prefect")}
_API = "PREFECT_API_URL"
_KEY = "PREFECT_API_KEY"
_LOGIN = "PREFECT_API_AUTH_STRING"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefectServer:
    """The address of a server, and what lets a client in."""

    api: str
    """Ends with /api."""
    named_by: str
    """In words for a person: the variable, the settings, or the command."""
    key: str | None = field(default=None, repr=False)
    login: str | None = field(default=None, repr=False)
    """USER:PASSWORD."""

    @property
    def headers(self) -> dict[str, str]:
        """The header that lets a client in; empty if none is needed."""
        if self.key:
            return {"Authorization": f"Bearer {self.key}"}
        if self.login:
            return {"Authorization": f"Basic {base64.b64encode(self.login.encode()).decode()}"}
        return {}


def named_server() -> PrefectServer | None:
    """The server that the environment, the active profile or a file of settings names; None if none does."""
    api, key, login = (os.environ.get(name) for name in (_API, _KEY, _LOGIN))
    if api and (key or login or not _may_be_in_files(_KEY, _LOGIN)):
        return PrefectServer(api=api, named_by=_API, key=key, login=login)
    if not may_be_named():
        return None
    found = prefect_module().settings_of_client()
    if not found["api"]:
        return None
    return PrefectServer(named_by=_API if api else "the active Prefect profile or settings", **found)


def may_be_named() -> bool:
    """Whether the environment or a file may name a server. If not, Prefect need not be asked."""
    return _API in os.environ or _may_be_in_files(_API)


def names_profiles() -> bool:
    """Whether a file of settings of this folder says where the profiles are, as Prefect itself looks for them."""
    return any(
        file.is_file() and b"profiles_path" in file.read_bytes().lower() and _has_profiles_path(file)
        for file in (Path(".env"), *(Path(name) for name in _TABLES))
    )


def prefect_module() -> Any:
    """The module that knows Prefect; the core imports nothing of it."""
    for point in own_entry_points("rowvec.server"):
        return point.load()
    raise MachineError("the tasks of rowvec are not installed; install rowvec again")


def own_entry_points(group: str, name: str = "") -> list[EntryPoint]:
    """Entry points of rowvec itself. To look for them in every installed distribution takes 0.02 s."""
    found = distribution("rowvec").entry_points.select(group=group)
    return [point for point in found if name in ("", point.name)]


def one_authority(folder: Path) -> Path:
    """A file with one certificate authority, the least that OpenSSL takes, in this folder.

    It is for clients of a server that speaks no TLS. Prefect would load all authorities of certifi for each client, in
    0.02 s of processor time.
    """
    import certifi  # late: few commands need it

    file = folder / "authority.pem"
    first, end, _ = Path(certifi.where()).read_text("utf-8").partition("-----END CERTIFICATE-----")
    file.write_text(f"{first}{end}\n", "utf-8")
    return file


def _may_be_in_files(*names: str) -> bool:
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml")
    return (
        Path("prefect.toml").exists()
        or any(Path(name).is_file() and sign in Path(name).read_bytes().lower() for name, sign in _SETTINGS.items())
        or (profiles.exists() and _profile_may_have(profiles, names))
    )


def _profile_may_have(file: Path, names: tuple[str, ...]) -> bool:
    import tomllib  # late: most users have no profile

    try:
        found = tomllib.loads(file.read_text("utf-8"))
        profile = found["profiles"][os.environ.get("PREFECT_PROFILE") or found.get("active")]
        return any(name in profile for name in names)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError):
        return True


def _has_profiles_path(file: Path) -> bool:
    if file.name == ".env":
        from dotenv import dotenv_values  # late: most folders have no such file

        return bool(dotenv_values(file).get("PREFECT_PROFILES_PATH"))
    import tomllib  # late: as above

    try:
        found: Any = tomllib.loads(file.read_text("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        return False  # Prefect names the fault when it reads the file
    for table in _TABLES[file.name]:
        found = found.get(table, {})
    return "profiles_path" in found
