"""Flower's differential privacy does not protect those who send samples: it is refused."""

import sys

from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from strategies.errors import RunFailed

_WRAPPERS = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
)


def refuse_privacy_wrappers(strategy: Strategy) -> None:
    """Raise `RunFailed` if one of Flower's differential-privacy strategies wraps the caller.

    A wrapper keeps the strategy that it wraps in an attribute, and calls it; the strategy is told
    nothing. Only the callers can be looked at.

    Parameters
    ----------
    strategy : Strategy
        The one that is called.
    """
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, _WRAPPERS) and caller.strategy is strategy:
            raise RunFailed(
                f"{type(caller).__name__} does not protect the clients of "
                f"{type(strategy).__name__}: it clips and noises models, but here samples leave "
                "the devices, unclipped. Use it with FedAvg, or take it off"
            )
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
