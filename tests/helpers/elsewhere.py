"""A sampler that counts as one elsewhere and is the policy itself, right or wrong: no server has to run."""

from dataclasses import replace

from leaf.errors import Unavailable
from leaf.model.sampler import LocalSampler


class Elsewhere(LocalSampler):
    """Draw what the policy draws.

    Attributes:
        wrong: "" for right; "ignores the adapter"; or a number of nats by which all log-probabilities are too low.
        pushed: the versions that this process was told of, and whether it had to bring them.
    """

    exact = False

    def __init__(self, wrong=""):
        self.wrong, self.pushed = wrong, []

    @property
    def version(self):
        return self.pushed[-1][0]

    def sync(self, policy, version, *, push=True):
        self.pushed.append((version, push))

    def sample(self, policy, prompts, drawing, generators=None):
        started = self.version >= 0  # the check with random weights is over
        if self.wrong == "ignores the adapter":
            with policy.reference():
                return super().sample(policy, prompts, drawing, generators)
        groups = super().sample(policy, prompts, drawing, generators)
        off = float(self.wrong) if self.wrong and started else 0.0
        return [replace(group, surprisal=group.surprisal + off, version=self.version) for group in groups]


class Leaving(Elsewhere):
    """Stay away from a version of the weights on, as servers do that died.

    Args:
        last: the last version that is drawn from.
    """

    def __init__(self, last):
        super().__init__()
        self.last = last

    def sample(self, policy, prompts, drawing, generators=None):
        if self.version > self.last:
            raise Unavailable("No server answered for 9 s, so start one again (http://a; last: refused)")
        return super().sample(policy, prompts, drawing, generators)


class Behind(Elsewhere):
    """Settle draws when asked to start, and hand them out when waited for."""

    def start(self, policy, prompts, drawing, generators=None):
        groups = self.sample(policy, prompts, drawing, generators)
        return lambda: groups
