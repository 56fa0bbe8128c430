from .calibration import (
    Decisions as Decisions,
    fit_decisions as fit_decisions,
)
from .class_lookup import find_class as find_class
from .comparison import (
    Comparison as Comparison,
    RunSummary as RunSummary,
    compare_runs as compare_runs,
)
from .evaluate import (
    TestResult as TestResult,
    describe_copies as describe_copies,
    different_rows as different_rows,
    display_path as display_path,
    evaluate_classifier as evaluate_classifier,
    evaluate_on_test as evaluate_on_test,
    report_evidence as report_evidence,
    require_accuracy as require_accuracy,
)
from .explain import (
    PHOTO_SIDE as PHOTO_SIDE,
    Explanation as Explanation,
    explain_image as explain_image,
    grad_cam as grad_cam,
    heatmap as heatmap,
    make_explainer as make_explainer,
    overlay_heatmap as overlay_heatmap,
    overlay_photo as overlay_photo,
)
from .figures.blocks import draw_blocks as draw_blocks
from .figures.curves import (
    draw_comparison as draw_comparison,
    draw_lr_curve as draw_lr_curve,
    draw_schedule as draw_schedule,
)
from .figures.images import (
    draw_explanation as draw_explanation,
    draw_pairs as draw_pairs,
    draw_prediction as draw_prediction,
    draw_similar_pairs as draw_similar_pairs,
)
from .figures.style import Image as Image
from .linear_probe import (
    LinearProbe as LinearProbe,
    adjust_probe as adjust_probe,
    fit_linear_probe as fit_linear_probe,
    sample_for_probe as sample_for_probe,
)
from .metrics import PairedTest as PairedTest, Proportion as Proportion, wilson_interval as wilson_interval
from .precision import promise_precision as promise_precision, threshold_for_precision as threshold_for_precision
from .predictions import (
    PredictionTable as PredictionTable,
    read_predictions as read_predictions,
    write_predictions as write_predictions,
)
from .preview import (
    OVERVIEW_CLASSES as OVERVIEW_CLASSES,
    crop_sentence as crop_sentence,
    preview_overviews as preview_overviews,
    preview_sheets as preview_sheets,
)
from .ranking import Ranked as Ranked, rank_backbones as rank_backbones
from .reliability import Check as Check, Gap as Gap
from .report import (
    class_figure as class_figure,
    jpeg_uri as jpeg_uri,
    load_template as load_template,
    write_report as write_report,
)
from .tasks import (
    Metrics as Metrics,
    ValidationScores as ValidationScores,
    score_logits as score_logits,
    task_for as task_for,
)
from .zeroshot import Survey as Survey, survey_folders as survey_folders
