"""What other seeds of an update gave, in words."""

from typing import Any

from service.cli.output import fixed, print_facts, print_table, signed

Json = dict[str, Any]


def measured(name: str, value: float, noise: Json | None) -> str | None:
    """A measure of the summary, with its standard deviation over seeds where that is known."""
    over_seeds = noise and noise["summary"].get(name)
    return f"{fixed(value)} ± {fixed(over_seeds['sd'])} over seeds" if over_seeds else fixed(value)


def noise_in_short(report: Json) -> str | None:
    """A report's noise in one line: the mean score beside what another seed changes of it, and of how many seeds."""
    noise, score = report.get("noise"), report["summary"]["average_accuracy"]
    if not noise:
        return None
    if "average_accuracy" not in noise["summary"]:
        return str(noise["detail"])
    return f"average accuracy {measured('average_accuracy', score, noise)}: {noise['detail']}"


def print_noise(report: Json) -> None:
    """Prints what other seeds of the update give on every task, and what each change is worth beside that."""
    noisy = [(task["task"], task["noise"]) for task in report["tasks"] if task["noise"]]
    if not noisy:
        print_facts([("other seeds", report["noise"]["detail"])])
        return
    columns = ("other seeds", "seeds", "scores", "sd", "mean change", "bounds", "which says")
    rows = (
        (
            task, len(noise["seeds"]), f"{fixed(noise['score']['low'])} … {fixed(noise['score']['high'])}",
            fixed((noise["change"] or noise["score"])["sd"]), noise["change"] and signed(noise["change"]["mean"]),
            noise["change"] and " … ".join(str(signed(bound)) for bound in noise["change"]["mean_interval"]), noise["detail"],
        )
        for task, noise in noisy
    )  # fmt: skip
    print_table(columns, rows, right=columns[1:-1])
