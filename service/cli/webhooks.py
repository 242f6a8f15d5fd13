"""`palimpsest webhook`: who is told of events, and what came of telling them."""

from collections.abc import Callable
from datetime import timedelta
from typing import Annotated

import typer

from service.cli.calling import DEFAULT_LIMIT, Call, Json, Limit, Yes, confirm, over_http
from service.cli.durations import parse_duration
from service.cli.output import moment, print_facts, print_list
from service.cli.problems import CallFailed

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Make and manage webhooks, which are told of updates and champions as it happens.

    Managing them needs a key with the scope `admin`. Messages are signed as Standard Webhooks has it.""",
)

WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Id of the webhook, `whk_…`.")]
DeliveryId = Annotated[str, typer.Argument(metavar="DELIVERY", help="Id of the delivery, `dlv_…`.")]
EventTypes = Annotated[
    list[str] | None,
    typer.Option(
        "--event", help="What to be told of; may be given several times.", show_default="everything"
    ),
]
Description = Annotated[str | None, typer.Option(help="What it is for.", show_default=False)]


@over_http(app, "create")
def create_webhook(
    call: Call,
    url: Annotated[str, typer.Argument(metavar="URL", help="Where to POST, `https://…`.")],
    event: EventTypes = None,
    description: Description = None,
) -> None:
    """Make a webhook and print the secret to verify its messages with. It is shown this once.

    Example: `palimpsest webhook create https://ci.example.com/palimpsest --event update.promoted`
    """
    given: Json = {"url": url, "events": event, "description": description}
    _show_secret(
        call, call.api.create("/v1/webhooks", {name: value for name, value in given.items() if value})
    )


@over_http(app, "list")
def list_webhooks(call: Call, limit: Limit = DEFAULT_LIMIT) -> None:
    """List webhooks, oldest first, without their secrets."""

    def view(page: Json) -> None:
        rows = (
            (one["id"], one["url"], _events(one), one["enabled"], moment(one["failing_since"]))
            for one in page["data"]
        )
        print_list(page, ("id", "url", "events", "enabled", "failing since"), rows)

    call.show(call.api.pages("/v1/webhooks", limit=limit), view)


@over_http(app, "show")
def show_webhook(call: Call, webhook: WebhookId) -> None:
    """Show a webhook, and since when it fails."""
    call.show(call.api.get(_of(webhook)), _facts)


@over_http(app, "change")
def change_webhook(
    call: Call,
    webhook: WebhookId,
    url: Annotated[str | None, typer.Option(help="Where to POST from now on.", show_default=False)] = None,
    event: EventTypes = None,
    all_events: Annotated[bool, typer.Option("--all-events", help="Be told of everything.")] = False,
    description: Description = None,
    enabled: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Switch it on or off.", show_default=False)
    ] = None,
) -> None:
    """Change a webhook; what is not named stays. Switching it off gives up what is pending."""
    given: Json = {"url": url, "events": event or None, "description": description, "enabled": enabled}
    body = {name: value for name, value in given.items() if value is not None}
    if all_events:
        body["events"] = None
    if not body:
        raise typer.BadParameter("name what to change; see --help")
    call.show(call.api.patch(_of(webhook), body), _facts)


@over_http(app, "rotate")
def rotate_webhook(
    call: Call,
    webhook: WebhookId,
    overlap: Annotated[
        str | None,
        typer.Option(
            help="How long messages are signed with the old secret too: 12h, 7d; 0 for one that leaked.",
            show_default="1d",
        ),
    ] = None,
) -> None:
    """Replace a webhook's secret and print the new one. It is shown this once."""
    lasting = timedelta(0) if overlap == "0" else parse_duration(overlap or "1d", option="--overlap")
    body = {"overlap_seconds": int(lasting.total_seconds())}
    _show_secret(call, call.api.create(_of(webhook, "rotate"), body))


@over_http(app, "delete")
def delete_webhook(call: Call, webhook: WebhookId, yes: Yes = False) -> None:
    """Delete a webhook with its log. What is pending is not sent."""
    confirm(f"Delete the webhook '{webhook}' with its log?", yes=yes)
    call.show(call.api.delete(_of(webhook)), lambda _answer: call.say(f"The webhook '{webhook}' is deleted."))


@over_http(app, "test")
def send_test(call: Call, webhook: WebhookId) -> None:
    """Send a test message; `palimpsest webhook deliveries` shows what came of it."""
    call.show(call.api.create(_of(webhook, "test"), {}), _under_way(call))


@over_http(app, "deliveries")
def list_deliveries(
    call: Call,
    webhook: WebhookId,
    only: Annotated[
        str | None, typer.Option(help="Only those that are pending, delivered or failed.", show_default=False)
    ] = None,
    limit: Limit = 100,
) -> None:
    """List what was sent to a webhook, newest first: states, attempts, and what went wrong."""
    columns = ("id", "event", "at", "state", "attempts", "status", "error", "next attempt")

    def view(page: Json) -> None:
        rows = (
            (
                one["id"], one["type"], moment(one["created_at"]), one["state"], one["attempts"],
                one["status_code"], one["error"], moment(one["next_attempt_at"]),
            )
            for one in page["data"]
        )  # fmt: skip
        print_list(page, columns, rows, right=("attempts", "status"))

    call.show(call.api.pages(_of(webhook, "deliveries"), limit=limit, state=only), view)


@over_http(app, "replay")
def replay_delivery(call: Call, webhook: WebhookId, delivery: DeliveryId) -> None:
    """Send a delivery again at once, under the same message id, whatever came of it before."""
    call.show(call.api.create(_of(webhook, "deliveries", delivery, "replay"), {}), _under_way(call))


def _of(webhook: str, *rest: str) -> str:
    from service.cli.client import path

    return path("webhooks", webhook, *rest)


def _under_way(call: Call) -> Callable[[Json], None]:
    return lambda delivery: call.say(f"The delivery {delivery['id']} ({delivery['type']}) is on its way.")


def _show_secret(call: Call, made: Json) -> None:
    if made["secret"] is None:
        raise CallFailed(
            f"The webhook {made['id']} is there, but the answer that held its secret was lost on the way; "
            f"'palimpsest webhook rotate {made['id']}' gives it another."
        )

    def view(webhook: Json) -> None:
        print_facts((("id", webhook["id"]), ("url", webhook["url"])))
        typer.echo(webhook["secret"])  # in one piece, however narrow the terminal

    call.show(made, view)


def _events(webhook: Json) -> list[str]:
    return webhook["events"] or ["all"]


def _facts(webhook: Json) -> None:
    print_facts([
        ("id", webhook["id"]),
        ("url", webhook["url"]),
        ("events", _events(webhook)),
        ("description", webhook["description"]),
        ("enabled", webhook["enabled"]),
        ("disabled because", webhook["disabled_reason"]),
        ("failing since", moment(webhook["failing_since"])),
        ("secret rotated", moment(webhook["rotated_at"])),
        ("old secret signs until", moment(webhook["previous_secret_signs_until"])),
        ("created", moment(webhook["created_at"])),
    ])  # fmt: skip
