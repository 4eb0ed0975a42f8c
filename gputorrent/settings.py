"""Every setting of the coordinator, read from the environment once, here.

Precedence: environment, then the default below. `python manage.py check` says what does not fit together.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import dj_database_url
from django.core.exceptions import ImproperlyConfigured

from gputorrent.logins import *  # noqa: F403 - settings
from gputorrent.looks import UNFOLD  # noqa: F401 - a setting

# -- helpers of this file ------------------------------------------------------------------------------


def _text(name: str, default: str = "") -> str:
    """An environment variable, or the contents of the file that NAME_FILE points at (for secrets)."""
    path = os.environ.get(f"{name}_FILE")
    if path:
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except OSError as e:
            raise ImproperlyConfigured(f"{name}_FILE: cannot read {path}: {e.strerror}") from None
    return os.environ.get(name, default)


def _number(name: str, default: float, at_least: float = 0.0) -> float:
    raw = os.environ.get(name, "")
    if not raw:
        return default
    try:
        value = float(raw)
    except ValueError:
        raise ImproperlyConfigured(f"{name}={raw!r} is not a number") from None
    if not at_least <= value < 1e12:  # also refuses NaN
        raise ImproperlyConfigured(f"{name}={raw!r} must be at least {at_least:g}")
    return value


def _flag(name: str, default: bool) -> bool:
    raw = os.environ.get(name, "").lower()
    if raw in {"", "0", "false", "no", "off", "1", "true", "yes", "on"}:
        return default if not raw else raw in {"1", "true", "yes", "on"}
    raise ImproperlyConfigured(f"{name}={raw!r} is neither true nor false")


def _list(name: str, default: str = "") -> list[str]:
    return [part.strip() for part in os.environ.get(name, default).split(",") if part.strip()]


# -- who we are ----------------------------------------------------------------------------------------
BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(os.environ.get("GPUTORRENT_DATA_DIR") or BASE_DIR / ".data")

MODE = os.environ.get("GPUTORRENT_MODE") or "development"
if MODE not in {"development", "production"}:
    raise ImproperlyConfigured(f"GPUTORRENT_MODE={MODE!r}: use development or production")
PRODUCTION = MODE == "production"
DEBUG = False  # a debug page would show prompts and keys to whoever provokes an error


def _secret_key() -> str:
    key = _text("SECRET_KEY")
    if PRODUCTION:
        if len(key) < 32 or len(set(key)) < 5 or key.startswith("django-insecure"):
            raise ImproperlyConfigured(
                "SECRET_KEY is missing or too weak for production: set it to at least 32 random characters, "
                'for example: export SECRET_KEY="$(openssl rand -hex 32)"'
            )
        return key
    if key:
        return key
    # In development the key is made once and kept, so that sessions and API keys outlive a restart.
    DATA_DIR.mkdir(parents=True, exist_ok=True)
    path = DATA_DIR / "secret_key"
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as f:
            f.write(secrets.token_hex(32))
    except FileExistsError:
        pass
    # The process that lost the race may look before the winner has written.
    for _ in range(100):
        key = path.read_text(encoding="ascii")
        if key:
            return key
    raise ImproperlyConfigured(f"{path} is empty: remove it and start again")


SECRET_KEY = _secret_key()
API_KEY_PEPPER = _text("GPUTORRENT_API_KEY_PEPPER") or SECRET_KEY
"""Mixed into the stored hash of every API key, enrolment token and node secret."""

ALLOWED_HOSTS = _list("ALLOWED_HOSTS", "*" if not PRODUCTION else "localhost,127.0.0.1,[::1]")
CSRF_TRUSTED_ORIGINS = _list("CSRF_TRUSTED_ORIGINS")
ROOT_URLCONF = "gputorrent.urls"
ASGI_APPLICATION = "gputorrent.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True

INSTALLED_APPS = [
    "unfold",  # before the admin, whose templates it replaces
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "rest_framework",
    "adrf",
    "django_rq",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "axes",
    "csp",
    "nodes",
    "jobs",
    "api",
    "dashboard",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "servestatic.middleware.ServeStaticMiddleware",
    "gputorrent.policy.ContentPolicy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",  # the last: it turns a refused login into an answer
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]

LOGIN_REDIRECT_URL = "admin:index"  # who came to the login page by itself
AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",
    "django.contrib.auth.backends.ModelBackend",
]

STATIC_URL = "/static/"
SERVESTATIC_USE_FINDERS = True  # straight from the packages: nothing to collect first
SERVESTATIC_AUTOREFRESH = False

# Behind a proxy that ends TLS: cookies travel over HTTPS only, and the proxy's word on the scheme is taken.
HTTPS = _flag("GPUTORRENT_HTTPS", False)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = HTTPS
SECURE_HSTS_SECONDS = int(_number("GPUTORRENT_HSTS_SECONDS", 86400)) if HTTPS else 0
"""How long browsers are to remember that there is HTTPS here; 0: not at all."""
SILENCED_SYSTEM_CHECKS = [
    "security.W005",  # HSTS for other names of the domain: not ours to decide on
    "security.W008",  # sending HTTP on to HTTPS is the proxy's: agents and probes may use the port behind it
    "security.W021",  # browsers' lists of HSTS: as W005
]
SESSION_COOKIE_AGE = int(_number("GPUTORRENT_SESSION_SECONDS", 12 * 3600, 60))
SESSION_COOKIE_HTTPONLY = True
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if HTTPS else None
SECURE_CONTENT_TYPE_NOSNIFF = True
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "font-src": ["'self'"],
        "connect-src": ["'self'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
        "base-uri": ["'none'"],
    }
}
ADMIN_CONTENT_SECURITY_POLICY = {
    "script-src": ["'self'", "'unsafe-eval'"],
    "style-src": ["'self'", "'unsafe-inline'"],
}
"""What pages under /admin/ may do besides: the admin's looks evaluate expressions and set styles in place."""
X_FRAME_OPTIONS = "DENY"

# -- database: the ledger ------------------------------------------------------------------------------


def _database() -> dict[str, Any]:
    url = _text("DATABASE_URL")
    if not url:
        DATA_DIR.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{DATA_DIR / 'gputorrent.sqlite3'}"
    try:
        config: dict[str, Any] = dict(dj_database_url.parse(url))
    except (ValueError, KeyError) as e:
        raise ImproperlyConfigured(f"DATABASE_URL cannot be read: {type(e).__name__}") from None
    options = config.setdefault("OPTIONS", {})
    if config["ENGINE"].endswith("sqlite3"):
        # Without these, concurrent writers get "database is locked" (measured: 48 of 600; 0 with).
        options.update(
            transaction_mode="IMMEDIATE",
            timeout=10,
            init_command="PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        )
    else:
        # A pool, since every thread that Django's async bridge uses would otherwise hold its own connection.
        options.setdefault("connect_timeout", 3)
        # A server that was away is tried again every few seconds; else the pool's pauses grow to minutes.
        options.setdefault("pool", {"min_size": 1, "max_size": 8, "timeout": 3, "reconnect_timeout": 5})
        # A server that vanished without a word is noticed in seconds, not after a quarter of an hour.
        options.setdefault("tcp_user_timeout", 10_000)
        options.setdefault("keepalives_idle", 5)
        options.setdefault("keepalives_interval", 2)
        options.setdefault("keepalives_count", 3)
        # Connections that a restart of the server has cut are not handed out.
        config["CONN_HEALTH_CHECKS"] = True
    return config


DATABASES = {"default": _database()}

# -- Redis: the wire -----------------------------------------------------------------------------------
REDIS_URL = _text("REDIS_URL", "redis://127.0.0.1:6379/0")
REDIS_PUBLIC_URL = _text("GPUTORRENT_REDIS_PUBLIC_URL")
"""How agents reach Redis (without credentials). Default: the host and port of REDIS_URL, and where that is
a loopback address, the host by which the agent reached the coordinator."""

# -- deferred work (django-rq) -------------------------------------------------------------------------
# JSON on both sides: whoever could write a pickle into these queues could run any code. Our `jobworker`
# command gives its workers the same serializer, which django-rq's own `rqworker` would not.
# The time-outs are for the admin's pages.
RQ_SHOW_ADMIN_LINK = False  # its pages are in `jobs.queue_pages`
_RQ_URL = REDIS_URL + ("&" if "?" in REDIS_URL else "?") + "socket_timeout=2.5&socket_connect_timeout=2.5"
RQ_QUEUES = {
    name: {"URL": _RQ_URL, "DEFAULT_TIMEOUT": 120, "SERIALIZER": "rq.serializers.JSONSerializer"}
    for name in ("routing", "maintenance")
}

# -- limits and times (seconds, bytes) -----------------------------------------------------------------
MAX_BODY_BYTES = int(_number("GPUTORRENT_MAX_BODY_BYTES", 10 * 1024 * 1024, 1024))
MAX_RESULT_BYTES = 64 * 1024 * 1024
DATA_UPLOAD_MAX_MEMORY_SIZE = MAX_RESULT_BYTES

HEARTBEAT_SECONDS = _number("GPUTORRENT_HEARTBEAT_SECONDS", 10, 0.05)
UNHEALTHY_AFTER_SECONDS = _number("GPUTORRENT_UNHEALTHY_AFTER_SECONDS", 60, 0.1)
LEASE_REFRESH_SECONDS = _number("GPUTORRENT_LEASE_REFRESH_SECONDS", 2, 0.05)
LEASE_SECONDS = _number("GPUTORRENT_LEASE_SECONDS", 6, 0.1)
SNAPSHOT_SECONDS = _number("GPUTORRENT_SNAPSHOT_SECONDS", 0.25, 0.01)
RECORD_SECONDS = _number("GPUTORRENT_RECORD_SECONDS", 0.25, 0.01)
SWEEP_SECONDS = _number("GPUTORRENT_SWEEP_SECONDS", 5, 0.1)

FIRST_TOKEN_SECONDS = _number("GPUTORRENT_FIRST_TOKEN_SECONDS", 120, 0.1)
STALL_SECONDS = _number("GPUTORRENT_STALL_SECONDS", 30, 0.1)
TOTAL_SECONDS = _number("GPUTORRENT_TOTAL_SECONDS", 3600, 0.1)
QUEUE_SECONDS = _number("GPUTORRENT_QUEUE_SECONDS", 60, 0)
QUEUE_PER_MODEL = int(_number("GPUTORRENT_QUEUE_PER_MODEL", 1000, 0))
QUEUE_TOTAL = int(_number("GPUTORRENT_QUEUE_TOTAL", 5000, 0))
QUEUE_PER_KEY = int(_number("GPUTORRENT_QUEUE_PER_KEY", (QUEUE_PER_MODEL + 1) // 2, 0))
"""How many requests of one API key may wait, for all models together: nobody fills a queue alone."""
ATTEMPTS = 3
BREAKER_FAULTS = int(_number("GPUTORRENT_BREAKER_FAULTS", 5, 1))
"""With more faults than this in the window, a model on a node gets no work until a probe succeeds."""
BREAKER_WINDOW_SECONDS = _number("GPUTORRENT_BREAKER_WINDOW_SECONDS", 60, 0.1)
BREAKER_OPEN_SECONDS = _number("GPUTORRENT_BREAKER_OPEN_SECONDS", 10, 0.01)
"""Until the first probe; twice as long after each that fails, up to the longest."""
BREAKER_LONGEST_SECONDS = _number("GPUTORRENT_BREAKER_LONGEST_SECONDS", 120, 0.01)
HOLD_OFF_SECONDS = _number("GPUTORRENT_HOLD_OFF_SECONDS", 600, 0.1)
"""How long a request that brought down three engines is refused."""
NODE_BYTES = int(_number("GPUTORRENT_NODE_BYTES", 256 * 1024 * 1024, 1024))
"""Bodies that may be under way to one node at a time."""
STREAM_BUFFER_BYTES = int(_number("GPUTORRENT_STREAM_BUFFER_BYTES", 8 * 1024 * 1024, 1024))
"""What a client that reads slowly may have waiting for it before its job is ended."""
TAIL_BYTES = int(_number("GPUTORRENT_TAIL_BYTES", 256 * 1024, 0))
"""How much of a stream's end is kept in memory for those who watch it (`/ws/jobs/{id}`)."""
TAIL_TOTAL_BYTES = int(_number("GPUTORRENT_TAIL_TOTAL_BYTES", 64 * 1024 * 1024, 0))
"""How much of all streams of a web process."""
TAIL_SECONDS = _number("GPUTORRENT_TAIL_SECONDS", 30, 0)
"""For how long after the end of a stream."""
SOCKETS = int(_number("GPUTORRENT_SOCKETS", 2000, 0))
"""How many WebSockets a web process has open at most."""
SOCKETS_PER_KEY = int(_number("GPUTORRENT_SOCKETS_PER_KEY", 100, 0))
"""How many of them one API key may have."""
SOCKET_STALL_SECONDS = _number("GPUTORRENT_SOCKET_STALL_SECONDS", 30, 0.05)
"""A WebSocket whose client takes nothing for so long is closed."""
LOAD_SECONDS = _number("GPUTORRENT_LOAD_WAIT_SECONDS", 900, 0.1)
"""How long a request may wait for a model that is being loaded."""
KEEPALIVE_SECONDS = _number("GPUTORRENT_KEEPALIVE_SECONDS", 10, 0.05)
"""How often a stream that waits is sent a comment, so that nobody on the way takes it for dead."""
SAMPLE_TTL_SECONDS = _number("GPUTORRENT_SAMPLE_TTL_SECONDS", 7 * 86400, 60)
JOB_TTL_SECONDS = _number("GPUTORRENT_JOB_TTL_SECONDS", 7 * 86400, 1)
RESULT_TTL_SECONDS = _number("GPUTORRENT_RESULT_TTL_SECONDS", 86400, 1)
RESULT_READ_SECONDS = _number("GPUTORRENT_RESULT_READ_SECONDS", 300, 0)
"""How long an asynchronous job's result is kept after its owner has first read it."""
IDEMPOTENCY_SECONDS = _number("GPUTORRENT_IDEMPOTENCY_SECONDS", 86400, 1)
"""How long an `Idempotency-Key` stands for the job it was first sent with."""

FILE_BYTES = int(_number("GPUTORRENT_FILE_BYTES", 100 * 1024 * 1024, 1))
"""The largest file that `POST /v1/files` takes."""
FILES_PER_KEY_BYTES = int(_number("GPUTORRENT_FILES_PER_KEY_BYTES", 1024 * 1024 * 1024, 1))
"""With more than this in its files, results of batches included, a key may store no other."""
FILE_TTL_SECONDS = _number("GPUTORRENT_FILE_TTL_SECONDS", 7 * 86400, 1)
"""How long files and ended batches are kept."""
BATCH_WINDOW_SECONDS = _number("GPUTORRENT_BATCH_WINDOW_SECONDS", 86400, 1)
"""What a batch's `completion_window` of 24h lasts."""
BATCH_LINES = int(_number("GPUTORRENT_BATCH_LINES", 50_000, 1))
BATCH_UNDER_WAY = int(_number("GPUTORRENT_BATCH_UNDER_WAY", 64, 1))
"""How many requests of one batch are jobs at a time: the rest waits in its file, not in a queue."""
BATCHES_PER_KEY = int(_number("GPUTORRENT_BATCHES_PER_KEY", 10, 1))
"""How many batches of one key may be open."""

ALLOW_URLS = _flag("GPUTORRENT_ALLOW_URLS", False)
"""Whether callers may name images, sounds and videos by http and https URLs, which nodes then fetch."""
EXTRA_PARAMETERS = frozenset(_list("GPUTORRENT_EXTRA_PARAMETERS"))
"""Parameters of requests that pass although neither OpenAI nor `api.sampling` knows them."""

AFFINITY = _flag("GPUTORRENT_AFFINITY", True)
"""Whether a chat's next turn goes back to the node that has its beginning in its cache."""
METRICS_TOKEN = _text("GPUTORRENT_METRICS_TOKEN")
"""A bearer token that may read /metrics and nothing else (for Prometheus; staff keys may too)."""
ANSWER_TOKENS_ASSUMED = int(_number("GPUTORRENT_ANSWER_TOKENS_ASSUMED", 512, 1))
"""Reserved of a key's tokens for an answer whose length the caller leaves open, until it has ended."""

LEAN_DOOR = _flag("GPUTORRENT_LEAN_DOOR", True)
"""Whether completions skip Django's request handling. Off: the same verb behind the DRF views."""

# -- REST framework ------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "api.negotiation.AlwaysJSON",
    "EXCEPTION_HANDLER": "api.metrics.counting_exception_handler",
    "DEFAULT_SCHEMA_CLASS": "api.openapi.inspector.TableSchema",
    "UNAUTHENTICATED_USER": None,
}

# The schema's text is in api/openapi; here is what drf-spectacular wants to know.
SPECTACULAR_SETTINGS = {
    "TITLE": "GPU Torrent",
    "DESCRIPTION": "Every GPU a team owns behind one OpenAI-compatible endpoint.",
    "VERSION": "0.1.0",
    "OAS_VERSION": "3.1.1",
    "POSTPROCESSING_HOOKS": ["api.openapi.inspector.add_components"],
}

# -- logs ----------------------------------------------------------------------------------------------
ACCESS_LOG = _text("GPUTORRENT_ACCESS_LOG", "some")
"""Which requests get a line: all, off, or some (see `gputorrent.access`). A line costs about 60 us."""
if ACCESS_LOG not in {"all", "some", "off"}:
    raise ImproperlyConfigured(f"GPUTORRENT_ACCESS_LOG={ACCESS_LOG!r}: use all, some or off")
LOG_JSON = _flag("GPUTORRENT_LOG_JSON", False)

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": "gputorrent.logs.Objects" if LOG_JSON else "gputorrent.logs.Lines"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": _text("GPUTORRENT_LOG_LEVEL", "INFO")},
    "loggers": {
        "rq": {"level": "WARNING"},
        "axes": {"level": "WARNING"},
        "httpx": {"level": "WARNING"},
        "django.request": {"level": "ERROR"},
    },
}
