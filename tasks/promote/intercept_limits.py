"""Whether what a champion is off by on average is mended by a recalibration, or is beyond that. Pure."""

from pipeline.monitoring import Monitor
from tasks.train.recalibration import MeasuredIntercept

_MOST_SPREADS = 4  # of an intercept; beyond that labels may be wrong, or the world another


def explain_recalibration(measured: MeasuredIntercept | None, monitor: Monitor) -> str | None:
    """Why a champion is to be recalibrated; None: it is not worth it, is told by too few labels, or is beyond that."""
    settings = monitor.recalibration
    if measured is None or settings is None or measured.gain < settings.min_gain:
        return None
    fitted = measured.fitted
    if fitted.rows < monitor.min_labelled or explain_far_off(measured, monitor):
        return None
    return (
        f"recalibrated: {fitted.value:+.3f} to each logit instead of {measured.before:+.3f}, by {fitted.rows} labels of"
        f" {fitted.days} days (standard error {fitted.standard_error:.3f}); {measured.gain:.5f} log_loss to be saved"
    )


def explain_far_off(measured: MeasuredIntercept | None, monitor: Monitor) -> str | None:
    """What people are told of a champion that is off by more than a recalibration mends; None: it is not."""
    settings = monitor.recalibration
    if measured is None or settings is None or measured.fitted.rows < monitor.min_labelled:
        return None
    if abs(measured.fitted.value) <= _MOST_SPREADS * settings.spread:
        return None
    return (
        f"not recalibrated: off by {measured.fitted.value:+.2f} in logits, {_MOST_SPREADS} times"
        f" monitor.recalibration.spread ({settings.spread}) is the most; look at the labels"
    )
