from .augment import Augmenter as Augmenter, MixUpCutMix as MixUpCutMix
from .batches import (
    Batch as Batch,
    ReadImage as ReadImage,
    WaitMeter as WaitMeter,
    balanced_epoch_order as balanced_epoch_order,
    epoch_order as epoch_order,
    image_batches as image_batches,
    image_reader as image_reader,
    index_batches as index_batches,
    pad_batch as pad_batch,
    read_ahead as read_ahead,
)
from .buckets import is_bucket_url as is_bucket_url, list_bucket as list_bucket
from .checks import require_two_classes as require_two_classes
from .dataset import (
    Dataset as Dataset,
    data_facts as data_facts,
    describe_changes as describe_changes,
    read_image_names as read_image_names,
    read_splits as read_splits,
)
from .discovery import find_images as find_images, list_images as list_images
from .duplicates import (
    MIN_FEATURE_SIMILARITY as MIN_FEATURE_SIMILARITY,
    MIN_FINGERPRINT_SIMILARITY as MIN_FINGERPRINT_SIMILARITY,
    SimilarPair as SimilarPair,
    distinct_images as distinct_images,
    feature_vectors as feature_vectors,
    find_near_duplicates as find_near_duplicates,
    fingerprint_vectors as fingerprint_vectors,
)
from .image_formats import IMAGE_SUFFIXES as IMAGE_SUFFIXES
from .images import (
    ImageSource as ImageSource,
    Transform as Transform,
    decode_image as decode_image,
    decode_square as decode_square,
    read_image as read_image,
    read_square as read_square,
    resize_square as resize_square,
)
from .inspection import Inspection as Inspection, inspect_image as inspect_image, typical_size as typical_size
from .labels import (
    MULTICLASS as MULTICLASS,
    MULTILABEL as MULTILABEL,
    NO_LABEL as NO_LABEL,
    SEPARATOR as SEPARATOR,
    LabelType as LabelType,
    label_type_of as label_type_of,
)
from .listing import Listing as Listing
from .opening import (
    open_dataset as open_dataset,
    open_labelled_dataset as open_labelled_dataset,
    reopen_dataset as reopen_dataset,
)
from .scan import scan_images as scan_images
from .sources import list_source as list_source
from .splits import LAYOUT as LAYOUT, SPLITS as SPLITS
from .suggestion import config_source as config_source, suggest_config as suggest_config
