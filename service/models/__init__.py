"""ORM tables, one file each; importing this package registers them all."""

from service.models.audit import AuditAction, AuditEntry
from service.models.base import Base, new_id
from service.models.dial import Dial, DialScore, DialState
from service.models.erasure import Erasure
from service.models.evaluation import EvalSet, RepeatScore, Score
from service.models.example import Example
from service.models.forecast import Forecast, ForecastProbe
from service.models.idempotency import IdempotencyKey
from service.models.leased import LeasedState
from service.models.model import Model
from service.models.replay import ReplayEntry
from service.models.session import EndedSession
from service.models.task import Task
from service.models.tenant import ApiKey, Tenant
from service.models.update import Update, UpdateEvent, UpdateState
from service.models.version import BLEND, IMPORT, Alias, AliasMove, Version, VersionTask
from service.models.webhook import (
    TEST_EVENT,
    DeliveryState,
    EventType,
    Webhook,
    WebhookDelivery,
    WebhookSecret,
)

__all__ = [
    "BLEND",
    "IMPORT",
    "TEST_EVENT",
    "Alias",
    "AliasMove",
    "ApiKey",
    "AuditAction",
    "AuditEntry",
    "Base",
    "DeliveryState",
    "Dial",
    "DialScore",
    "DialState",
    "EndedSession",
    "Erasure",
    "EvalSet",
    "EventType",
    "Example",
    "Forecast",
    "ForecastProbe",
    "IdempotencyKey",
    "LeasedState",
    "Model",
    "RepeatScore",
    "ReplayEntry",
    "Score",
    "Task",
    "Tenant",
    "Update",
    "UpdateEvent",
    "UpdateState",
    "Version",
    "VersionTask",
    "Webhook",
    "WebhookDelivery",
    "WebhookSecret",
    "new_id",
]
