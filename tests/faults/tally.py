"""What an attack counts."""

from dataclasses import dataclass, field


@dataclass
class Tally:
    """Rounds of one attack: how many were tried, in how many the fault really hit, and what went wrong in words."""

    tried: int = 0
    hit: int = 0
    bad: list[str] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)

    def note(self, outcome):
        """Count one more of a kind of outcome."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
