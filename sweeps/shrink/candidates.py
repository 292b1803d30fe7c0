"""What `sweeps shrink` tries first: from what takes seconds to what is trained."""

from __future__ import annotations

from sweeps.shrink.look import Speed
from sweeps.shrink.methods import MIXED, TRAINED, Methods
from sweeps.shrink.reach import extremes, values_of
from sweeps.shrink.wish import Wish
from sweeps.spec.yaml_text import Tree

_LONG_TUNING = 0.45
"""Share of the time that a long tuning takes, of whatever is left of the model."""
_MOST_EPOCHS = 100
"""Of a long tuning."""
_STRIDE = 2
"""Rungs of the ladder between the shares that are tried first."""
_DEEP_CUTS = 3
"""Of those that are stored in float, beside integers: what costs too much is not trained."""


def points(methods: Methods, wish: Wish, speed: Speed) -> list[Tree]:
    """What is tried first, each candidate once."""
    found = _Points(methods, wish, speed)
    _add_untrained(found)
    if found.first == len(methods.ladder) - 2:
        # the goal asks for what the plan may not have: the least of each kind says so
        for point in extremes(methods.slots, methods.space):
            found.take(point)
    if wish.is_timed:
        _train_for_time(found)
    else:
        _train_for_size(found)
    return found.in_order


def is_trained(point: Tree) -> bool:
    """Whether a candidate is trained."""
    return (
        point["stages.tune"] != "none"
        or point["stages.store"].endswith(TRAINED)
        or point["stages.cut"] == "nvit"
    )


def epoch_seconds(point: Tree, methods: Methods, speed: Speed) -> float:
    """Of tuning what a candidate leaves of the model: training takes as much less as its cut leaves
    of the cost. The teacher's pass, which no cut makes shorter, comes beside each step.
    """
    targets = (
        v for k, v in point.items() if k.startswith("stages.cut.") and ".target." in k
    )
    of_image = next(targets, 1.0) * speed.train_seconds + speed.pass_seconds
    return float(of_image * methods.epoch_images)


class _Points:
    """Candidates that the model can take.

    Attributes:
        in_order: the candidates.
        wish: the goal.
        counted: what cutting stages count.
        rungs: shares on the ladder.
        store: how what is cut is stored, first of all.
        first, first_in_int4: index of the first share on the ladder that may reach the goal, stored
            so, and in 4 bits.
        is_cut_in_int4: whether the goal asks for a cut even in 4 bits.
        in_float: indices of the shares that may reach the goal in float, where what is cut is
            stored in integers first of all: for what these make little faster, or harm.
    """

    def __init__(self, methods: Methods, wish: Wish, speed: Speed) -> None:
        self._methods, self._speed, self.wish = methods, speed, wish
        self.counted = wish.counted(speed)
        self.rungs = len(methods.ladder)
        self.store = wish.store if methods.has("store", wish.store) else "float"
        self.first = self._first_rung(self.store)
        self.first_in_int4 = self._first_rung("int4")
        left = wish.left_to_cut(speed, "int4")
        self.is_cut_in_int4 = left is not None and left < 1.0
        in_integers = self.store != "float"
        begin = self._first_rung("float") if in_integers else self.rungs
        self.in_float = range(begin, self.rungs)
        self.in_order: list[Tree] = []

    @property
    def has_int4(self) -> bool:
        """Whether weights may have four bits."""
        return self._methods.has("store", "int4")

    def _first_rung(self, store: str) -> int:
        wanted = self.wish.left_to_cut(self._speed, store)
        if wanted is None:
            return 1
        shares = enumerate(self._methods.ladder)
        rungs = [i for i, share in shares if share <= wanted]
        return min(rungs[0] if rungs else self.rungs - 2, self.rungs - 2)

    def add(
        self,
        cut: str,
        nth: int,
        tune: str,
        stored: str,
        which_store: int = -1,
        *,
        is_long: bool = False,
    ) -> None:
        """A candidate, unless the model cannot take it.

        Args:
            nth: the share of the ladder that the cut leaves, or the method's own value.
            which_store: the value of what is searched in the way to store.
            is_long: whether it is tuned for long.
        """
        methods = self._methods
        chosen = _chosen(methods, self.counted, cut, nth)
        has_all = (
            methods.has("cut", cut)
            and methods.has("tune", tune)
            and methods.has("store", stored)
        )
        is_source = (cut, tune, stored) == ("none", "none", "float")
        if chosen is None or not has_all or is_source:
            return
        slots = {"cut": cut, "tune": tune, "store": stored}
        found = {f"stages.{slot}": name for slot, name in slots.items()} | chosen
        for parameter, values in methods.space.items():
            if parameter.startswith(f"stages.store.{stored}."):
                found[parameter] = values[which_store]
        if tune == "tuned":
            epochs = self._long_epochs(found) if is_long else methods.short_epochs
            found |= methods.tuning(epochs)
        self.take(found)

    def take(self, candidate: Tree) -> None:
        """Take a candidate as it is."""
        if candidate not in self.in_order:
            self.in_order.append(candidate)

    def _long_epochs(self, point: Tree) -> int:
        """As many as fill a long tuning of what a candidate leaves of the model."""
        seconds = 3600 * self.wish.hours * _LONG_TUNING
        of_epoch = epoch_seconds(point, self._methods, self._speed)
        epochs = int(seconds / max(of_epoch, 1e-9))
        return max(self._methods.short_epochs, min(_MOST_EPOCHS, epochs))


def _add_untrained(found: _Points) -> None:
    store, first = found.store, found.first
    found.add("none", 0, "none", store)
    for which_store in (-1, 0):
        found.add("none", 0, "none", "int4", which_store)
    for nth in (first, first + _STRIDE):
        found.add("channels", nth, "none", store)
    if found.wish.is_timed:
        if first >= _STRIDE:  # enough where integers take more than is thought
            found.add("channels", first - _STRIDE, "none", store)
        found.add("none", 0, "none", MIXED, which_store=0)
    found.add("low_rank", first, "none", store)
    found.add("tokens", 0, "none", store)
    if found.wish.is_timed:
        for nth in found.in_float[: _STRIDE + 1 : _STRIDE]:
            found.add("channels", nth, "none", "float")
    if found.is_cut_in_int4:
        found.add("channels", found.first_in_int4, "none", "int4")


def _train_for_time(found: _Points) -> None:
    """Integers may make a model less fast than is thought, or more: both sides are looked at."""
    store, first = found.store, found.first
    found.add("channels", first, "tuned", store, is_long=True)
    _tune_deep_cuts(found)
    # what integers take away, training with their rounding gives back
    found.add("channels", first, "tuned", f"{store}{TRAINED}", is_long=True)
    found.add("none", 0, "none", f"{store}{TRAINED}")
    _tune_in_integers(found)
    # one of them is the least cut that keeps the goal
    _train_the_rest(found, range(max(0, first - 1), found.rungs))


def _train_for_size(found: _Points) -> None:
    """Of bytes, integers of one share take a quarter, so that deep cuts in float come last."""
    store, first = found.store, found.first
    found.add("channels", first, "none", f"{store}{TRAINED}")
    if found.counted == "params":  # integers have as many operations
        _tune_in_integers(found)
    _train_the_rest(found, range(first, found.rungs))
    _tune_deep_cuts(found)


def _tune_in_integers(found: _Points) -> None:
    """The whole model, in as few bits as there are."""
    smallest = "int4" if found.has_int4 else "int8"
    found.add("none", 0, "tuned", smallest)


def _tune_deep_cuts(found: _Points) -> None:
    for nth in found.in_float[:_DEEP_CUTS]:
        found.add("channels", nth, "tuned", "float", is_long=True)


def _train_the_rest(found: _Points, cuts: range) -> None:
    """A candidate or more of each kind.

    Args:
        cuts: shares on the ladder that are left by what is tuned for long.
    """
    store = found.store
    if found.is_cut_in_int4:
        found.add("channels", found.first_in_int4, "none", f"int4{TRAINED}")
    for nth in cuts[:3]:
        found.add("channels", nth, "tuned", store, is_long=True)
    for stored in ("int8", "int4") if store != "float" else ():
        found.add("none", 0, "none", stored + TRAINED)
    for nth in range(found.first_in_int4, found.rungs, _STRIDE)[:2]:
        found.add("channels", nth, "tuned", "int4")
    found.add("low_rank", found.first + _STRIDE, "tuned", store)
    found.add("nvit", found.first, "none", store)
    for nth in range(found.rungs):
        found.add("smaller", nth, "tuned", store)
    for nth in cuts[3:5]:
        found.add("channels", nth, "tuned", store, is_long=True)


def _chosen(methods: Methods, quantity: str, cut: str, nth: int) -> Tree | None:
    """The value of what is cut; None where the method has no such value."""
    shares = f"stages.cut.{cut}.target.{quantity}"
    if shares in methods.space:
        share = methods.ladder[min(nth, len(methods.ladder) - 1)]
        return {shares: share} if share in methods.space[shares] else None
    own = [p for p in methods.space if p.startswith(f"stages.cut.{cut}.")]
    if not own:
        return {}
    values = values_of(methods.space[own[0]])
    return {own[0]: values[nth]} if nth < len(values) else None
