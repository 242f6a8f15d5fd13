"""What the gate judges: a candidate beside a champion, task by task, from what both answered. Pure functions."""

from service.evaluations.gate import Comparison, Role
from service.evaluations.outcomes import Outcomes, flips, graded_interval, mean_score, pair


def role_of(task_id: str, *, learnt: frozenset[str], taught: frozenset[str]) -> Role:
    """Returns a task's part in an update that `taught` some tasks to a lineage that had `learnt` others."""
    if task_id not in learnt:
        return "new"
    return "relearnt" if task_id in taught else "old"


def compare(
    task: str,
    role: Role,
    *,
    size: int,
    candidate: Outcomes | None,
    champion: Outcomes | None,
    confidence: float,
) -> Comparison:
    """Compares two versions on the examples of a task that both answered.

    `size` is that of the eval set, told where one of them answered none. `confidence` is that of each one-sided
    bound of graded scores.
    """
    if candidate is None or champion is None:
        return Comparison(
            task=task,
            role=role,
            size=size,
            candidate_score=mean_score(candidate) if candidate else None,
            champion_score=mean_score(champion) if champion else None,
            negative_flips=0,
            positive_flips=0,
        )
    paired = pair(champion, candidate)
    negative, positive = flips(paired)
    before, after = paired.scores()
    return Comparison(
        task=task,
        role=role,
        size=len(paired.example_ids),
        candidate_score=after,
        champion_score=before,
        negative_flips=len(negative),
        positive_flips=len(positive),
        graded_interval=graded_interval(paired, confidence=confidence),
    )
