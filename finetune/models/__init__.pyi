from .build import (
    build_classifier as build_classifier,
    build_network as build_network,
    load_pretrained as load_pretrained,
    new_spec as new_spec,
)
from .classifier import SPEC_MEMBER as SPEC_MEMBER, Classifier as Classifier
from .feature_cache import (
    compute_features as compute_features,
    compute_missing_features as compute_missing_features,
    open_features as open_features,
    prepare_features as prepare_features,
    remove_feature_leftovers as remove_feature_leftovers,
)
from .feature_files import features_folder as features_folder
from .feature_plan import FeaturePlan as FeaturePlan, FeatureRequest as FeatureRequest, plan_features as plan_features
from .features import (
    FEATURE_BATCH as FEATURE_BATCH,
    CachedFeatures as CachedFeatures,
    FeatureExtractor as FeatureExtractor,
    FeatureSource as FeatureSource,
    LiveFeatures as LiveFeatures,
    all_rows as all_rows,
    refuse_unreadable as refuse_unreadable,
)
from .inference import activate as activate, inference_function as inference_function
from .inputs import find_inputs as find_inputs, read_path_list as read_path_list, shard as shard
from .joint import (
    PredictionRequest as PredictionRequest,
    load_classifiers as load_classifiers,
    load_imagenet_classifier as load_imagenet_classifier,
    predict_jointly as predict_jointly,
)
from .predictor import (
    PREDICT_BATCH as PREDICT_BATCH,
    UNKNOWN as UNKNOWN,
    ClassScore as ClassScore,
    Prediction as Prediction,
    make_prediction as make_prediction,
    predict_images as predict_images,
)
from .saving import load_classifier as load_classifier, read_spec as read_spec
from .spec import ClassifierSpec as ClassifierSpec, RiskCoveragePoint as RiskCoveragePoint, transform_of as transform_of
from .writers import (
    CsvWriter as CsvWriter,
    JsonWriter as JsonWriter,
    PartialTable as PartialTable,
    TableLayout as TableLayout,
    open_table as open_table,
    partial_path as partial_path,
    read_partial as read_partial,
)
