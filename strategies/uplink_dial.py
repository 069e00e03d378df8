"""One budget of uplink bytes for a whole run, divided between nodes and rounds.

What a node may send in a round follows from what is left: of the budget after all replies so far,
and of the samples. Replies that are out keep what they were granted.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from logging import INFO, WARNING
from typing import Any

from flwr.common import log

from codec import CodecOptions, OptionError, PayloadError
from codec.messages import Description, MixedOptions, ReplayOptions
from codec.samples.rate_curve import RateCurve, knob_of, with_setting
from strategies.budget_law import Plan, best_plan

_REPLY_BYTES = 520.0  # of a reply beside its samples, before the first one
_WORTH = 6.0  # a node is asked for at least so many times what its reply takes beside samples
_KEPT_BACK = 0.03  # share that rounds after the first may correct by
_ABOVE = 0.015  # share that the last round may grant beyond the rest: clients fill 97 to 100 %
_TRUST = 0.25  # what a node's share shrinks by with each grant that came to nothing
_CLOSE = 0.01  # share of the budget that is not worth another round
_SHOULD_REACH = 0.97


@dataclass(frozen=True)
class Grant:
    """What a node may send in a round.

    Attributes
    ----------
    payload_bytes : int
        Of samples.
    all_bytes : int
        Of the whole reply, as expected.
    finest : float
        See `codec.messages.ReplayRequest`.
    """

    payload_bytes: int
    all_bytes: int
    finest: float


class UplinkDial:
    """Turns a budget into a plan, and the plan into what each node is asked for.

    Parameters
    ----------
    budget : int
        Content bytes of all replies of the run.
    codec : CodecOptions
        How samples are coded, but for step or quality.
    keep_rate : float
        Share of a node's samples that is ever sent.
    identity_bytes : int
        Bytes that travel beside each sample.

    Attributes
    ----------
    plan : Plan or None
        None before the first nodes have described their samples.
    """

    def __init__(
        self, budget: int, codec: CodecOptions, keep_rate: float, identity_bytes: int
    ) -> None:
        self.budget, self._keep_rate, self._beside = budget, keep_rate, identity_bytes
        self._codec = codec
        self.plan: Plan | None = None
        self._finest = 0.0
        self._examples: dict[int, int] = {}
        self._curves: dict[int, RateCurve] = {}
        self._left: dict[int, int] = {}  # samples that nodes have not sent, as of their last reply
        self._granted: dict[int, Grant] = {}
        self._owing: set[int] = set()  # nodes that were granted something and have sent nothing yet
        self._failed: Counter[int] = Counter()  # in how many requests on end
        self._replies, self._overhead, self._sent, self._payload = 0, 0.0, 0, 0

    # What is known

    def knows(self, node_id: int) -> bool:
        """Whether a node has described its samples."""
        return node_id in self._examples

    def describe(self, node_id: int, described: Description) -> None:
        """Take note of how many samples a node has, and of what they take."""
        self._examples[node_id] = described.num_examples
        if described.curve:
            try:
                self._curves[node_id] = RateCurve.from_bytes(described.curve)
            except PayloadError as error:
                log(WARNING, "node %d: %s; its rate is taken to be that of others", node_id, error)

    def rename(self, old: int, new: int) -> None:
        """Know a node by the id that it has now."""
        tables: tuple[dict[int, Any], ...] = (self._examples, self._left, self._granted)
        self._owing.discard(old)
        for known in tables:
            if old in known:
                known[new] = known.pop(old)

    def note(
        self, node_id: int, content_bytes: int, payload_bytes: int, samples: int, remaining: int
    ) -> None:
        """Take note of a reply that was accepted: what it took, and what its node has left."""
        self._left[node_id] = remaining
        self._owing.discard(node_id)
        self._failed.pop(node_id, None)
        if content_bytes and samples:
            self._replies += 1
            self._overhead += content_bytes - payload_bytes - self._beside * samples
            self._sent += samples
            self._payload += payload_bytes

    def granted(self, node_id: int) -> Grant | None:
        """Return what a node was granted last."""
        return self._granted.get(node_id)

    # What is asked

    def is_used_up(self, spent: int, out: Collection[int]) -> bool:
        """Whether what is left, but for the replies that are out, is not worth another request."""
        close = _CLOSE * self.budget if self._replies else 0.0
        worthless = self._available(spent, out) <= max(close, self._reply_bytes)
        return self.plan is not None and worthless

    def worth_asking(
        self,
        nodes: Sequence[int],
        spent: int,
        node_bytes: Mapping[int, int],
        out: Collection[int],
        rounds_left: int,
    ) -> list[int]:
        """Return as many nodes as what is left is worth: those that answer, and have sent least.

        Parameters
        ----------
        nodes : sequence of int
            In an order that nothing else depends on.
        spent : int
            Bytes so far.
        node_bytes : Mapping
            Likewise, by node.
        out : collection of int
            Nodes whose replies are out.
        rounds_left : int
            In the only round all nodes are asked: who has how much is not known yet.
        """
        left = self._available(spent, out)
        if self.is_used_up(spent, out):
            return []
        if self.plan is None and rounds_left == 1:
            return list(nodes)
        asking = self._reply_bytes if self._replies else 2 * self._reply_bytes  # and describing
        most = max(1, math.floor(left / (_WORTH * asking)))
        able = [n for n in nodes if not self.knows(n) or self._unsent(n)]
        if left < 2 * _WORTH * asking:  # not worth another description
            able = [n for n in able if self.knows(n)] or able

        def place(node_id: int) -> tuple[int, int]:
            failures = self._failed[node_id] + (node_id in self._owing)
            return failures, node_bytes.get(node_id, 0)

        chosen = sorted(able, key=place)[:most]
        return [node_id for node_id in nodes if node_id in set(chosen)]

    def grant(
        self,
        nodes: Sequence[int],
        spent: int,
        out: Collection[int],
        others: Collection[int],
        rounds_left: int,
        *,
        all_now: bool,
    ) -> list[int]:
        """Divide what is left, and return the nodes that may send something.

        Parameters
        ----------
        nodes : sequence of int
            Nodes that can be asked, all of them described.
        spent : int
            Bytes so far.
        out : collection of int
            Nodes whose replies are out.
        others : collection of int
            Nodes that later rounds may ask.
        rounds_left : int
            Rounds in which more can be asked for, this one among them, >= 1.
        all_now : bool
            Whether nothing is left for the others.

        Raises
        ------
        OptionError
            If the budget does not suffice for a single sample.
        """
        unsent = {node_id: n for node_id in nodes if (n := self._unsent(node_id)) > 0}
        self._granted = {n: grant for n, grant in self._granted.items() if n in out}
        if not unsent:
            return []
        available = self._available(spent, out) - len(unsent) * self._reply_bytes
        self._failed.update(self._owing & unsent.keys())
        here = sum(unsent.values())
        later = self._yet_unheard(others, here / len(unsent))
        if self.plan is None:
            self._make_plan(available, unsent, here + round(later))
        assert self.plan is not None
        share = 1.0 if all_now else max(here / (here + later), 1 / rounds_left)
        last = rounds_left == 1 or self.plan.sends_all
        if rounds_left == 1:
            available += _ABOVE * min(available, self.budget)
        elif not last and not self._replies:
            share *= 1 - _KEPT_BACK
        pot = share * available
        rate = self._payload / self._sent if self._sent else self.plan.bytes_per_sample
        finest = self.settings[0 if last else 1]
        # Who did not send what it was granted may not do so again: others take it.
        weights = {n: count * _TRUST ** self._failed[n] for n, count in unsent.items()}
        scale = pot / sum(weights.values())
        for node_id, count in unsent.items():
            part = scale * weights[node_id]
            beside = self._beside * min(count, part / (rate + self._beside))
            payload = math.floor(part - beside)
            if payload >= rate:
                whole = math.ceil(part + self._reply_bytes)
                self._granted[node_id] = Grant(payload, whole, finest)
        asked = [node_id for node_id in nodes if node_id in unsent and node_id in self._granted]
        self._owing.update(asked)
        return asked

    @property
    def codec(self) -> CodecOptions:
        """How samples are to be coded."""
        return self._codec if self.plan is None else with_setting(self._codec, self.plan.setting)

    @property
    def settings(self) -> tuple[float, float]:
        """The finest and the coarsest setting in which samples may come; 0 without any."""
        knob = knob_of(self._codec)
        setting = float(getattr(self.codec, knob)) if knob else 0.0
        return self._finest or setting, setting

    def _available(self, spent: int, out: Collection[int]) -> float:
        reserved = sum(g.all_bytes for node_id, g in self._granted.items() if node_id in out)
        return float(self.budget - spent - reserved)

    @property
    def _reply_bytes(self) -> float:
        return self._overhead / self._replies if self._replies else _REPLY_BYTES

    def _unsent(self, node_id: int) -> int:
        if node_id in self._left:
            return self._left[node_id]
        return math.ceil(self._keep_rate * self._examples.get(node_id, 0))

    def _yet_unheard(self, nodes: Collection[int], usual: float) -> float:
        """Return how many samples nodes have that have sent none yet."""
        fresh = [node_id for node_id in nodes if node_id not in self._left]
        return sum(self._unsent(n) if self.knows(n) else usual for n in fresh)

    def _make_plan(self, available: float, unsent: Mapping[int, int], total: int) -> None:
        curves = [(n, self._curves[node]) for node, n in unsent.items() if node in self._curves]
        if not curves:
            raise OptionError(
                "uplink_budget_total",
                f"= {self.budget} needs to know what samples take, and no node says so: have nodes "
                "that run this version, or take uplink_budget",
            )
        curve = RateCurve.mean(curves)
        plan = best_plan(curve, available, total, beside=self._beside)
        if available <= 0 or not plan.samples:
            raise OptionError(
                "uplink_budget_total",
                f"= {self.budget} bytes is less than descriptions, replies and one sample take: "
                f"{self.budget - available:.0f} bytes beside samples, and at least "
                f"{curve.sizes[-1]:.1f} a sample. Raise it, or ask fewer nodes",
            )
        self.plan = plan
        self._finest = curve.finest if len(curve.settings) > 1 else 0.0
        log(INFO, "%s", self.words())
        if plan.sends_all and math.isclose(plan.setting, self._finest, rel_tol=1e-5):
            log(
                INFO,
                "all samples as fine as is of use take less than the budget: the rest is not spent",
            )

    # What is told

    def words(self) -> str:
        """Return the plan in words."""
        plan = self.plan
        if plan is None:
            return f"budget {in_words(self.budget)}: no plan yet"
        knob = knob_of(self._codec)
        setting = f" at {knob} {plan.setting:.3g}" if knob else ""
        return (
            f"budget {in_words(self.budget)}: {plan.samples:,} of {plan.total:,} samples{setting}, "
            f"{plan.bytes_per_sample:.1f} B each, predicted to keep {1 - plan.lost:.1%} of their "
            "variance"
        )

    def outcome(self, spent: int) -> str:
        """Return in words how the budget was met, and why if it was not."""
        text = f"uplink {spent:,} of {self.budget:,} bytes ({spent / self.budget:.1%})"
        if spent >= _SHOULD_REACH * self.budget:
            return text
        known = [*self._examples]
        if known and not any(map(self._unsent, known)):
            return f"{text}: the nodes that were asked have sent all their samples"
        return f"{text}: samples are left, of nodes that did not answer or in too few rounds"

    def report(self, spent: int) -> dict[str, Any]:
        """Return plan and outcome, for a file."""
        plan = {} if self.plan is None else asdict(self.plan)
        return {"bytes": self.budget, "spent": spent, "plan": plan, "words": self.outcome(spent)}

    # A run that goes on in another process

    def state(self) -> dict[str, Any]:
        """Return what is known, for a checkpoint; what was granted is not."""
        return {
            "plan": None if self.plan is None else asdict(self.plan),
            "finest": self._finest,
            "examples": self._examples,
            "left": self._left,
            "replies": (self._replies, self._overhead, self._sent, self._payload),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.plan = None if state["plan"] is None else Plan(**state["plan"])
        self._finest = state["finest"]
        self._examples, self._left = dict(state["examples"]), dict(state["left"])
        self._replies, self._overhead, self._sent, self._payload = state["replies"]


def dial_of(budget: int, options: ReplayOptions, mixed: MixedOptions) -> UplinkDial | None:
    """Return the dial of a budget; None for none.

    Raises
    ------
    OptionError
        If other options contradict a budget of the whole run.
    """
    if not budget:
        return None
    for name in ("uplink_budget", "samples_per_round"):
        value = getattr(options, name)
        if value:
            raise OptionError(
                name,
                f"= {value} contradicts uplink_budget_total = {budget}, from which follows what a "
                f"node sends in a round: leave {name} at 0, or take no total",
            )
    if mixed.mixed:
        raise OptionError(
            "mixed",
            f"= True contradicts uplink_budget_total = {budget}: models take what they take. Leave "
            "one of them out",
        )
    return UplinkDial(budget, options.codec, options.keep_rate, options.identity_bytes)


def in_words(size: int) -> str:
    """Return a number of bytes in the largest unit that it has one of."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 1000)):
        if size >= factor:
            return f"{size / factor:.4g} {unit}"
    return f"{size} B"
