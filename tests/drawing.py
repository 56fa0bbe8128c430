"""The report of a training, without its figures and its page: to draw them is a third of a training of the tests."""

import pytest

from finetune.evaluation import report


def leave_out_drawing(patch: pytest.MonkeyPatch) -> None:
    """Let trainings write report.json alone. The tests of the report, and one of a whole training, look at the rest."""
    patch.setattr(report, "draw_figures", lambda data: {})
    patch.setattr(report, "render_page", lambda data, figures: "")
