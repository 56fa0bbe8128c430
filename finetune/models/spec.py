"""All that is needed to build a classifier's network again, in plain JSON: names from the registry and a few numbers.

    spec = ClassifierSpec(backbone="resnet50", image_size=224, classes=("cat", "dog"))
    ClassifierSpec.from_json(text)       strict: what a stranger's file says is checked before anything is built

Hence the limits: a small file must not be able to claim a giant network, to run code or to disturb a terminal.
"""

import json
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from finetune.backbones import Backbone, find_backbone, imagenet_classes
from finetune.config import MAX_HIDDEN, MAX_IMAGE_SIZE, MAX_WIDTH
from finetune.data import MULTICLASS, MULTILABEL, LabelType, Transform

FORMAT = 1
MAX_CLASSES = 100_000
MAX_NAME = 1000  # letters in a class name
MAX_POINTS = 1000  # of the risk-coverage table


def _check_name(name: str) -> str:
    if not name.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return name


Probability = Annotated[float, Field(ge=0, le=1.0001, allow_inf_nan=False)]  # rounding may give a little above 1
ClassName = Annotated[str, Field(min_length=1, max_length=MAX_NAME), AfterValidator(_check_name)]
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]


class RiskCoveragePoint(NamedTuple):
    """How often predictions are correct whose highest probability is at least `threshold`; fractions in 0..1."""

    threshold: Probability
    precision: Probability  # of the predictions above the threshold
    coverage: Probability  # the fraction of images that are above the threshold
    images: Annotated[int, Field(ge=0)] = 0  # how many these are; 0 where finetune 0.1 did not write it down


class ClassifierSpec(BaseModel):
    """What a classifier is, apart from its weights. The JSON page in a model file has these keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: str
    image_size: int = Field(ge=1, le=MAX_IMAGE_SIZE)
    resize: Literal["crop", "squash", "pad"] = "crop"
    pooling: Literal["avg", "max", "gem", "imagenet"] = "avg"  # "imagenet": the network's own 1000-class head
    dropout: float = Field(default=0.0, ge=0, lt=1, allow_inf_nan=False)
    hidden: tuple[Width, ...] = Field(default=(), max_length=MAX_HIDDEN)  # widths of the head's hidden layers
    cosine: bool = False  # logits are proportional to the cosine between features and class
    temperature: float = Field(default=1.0, gt=0, lt=1000)  # the last layer's weights are divided by it already
    confidences: tuple[RiskCoveragePoint, ...] = Field(default=(), max_length=MAX_POINTS)  # on validation images
    tested: tuple[RiskCoveragePoint, ...] = Field(
        default=(), max_length=MAX_POINTS
    )  # the same thresholds on test images
    multi_label: bool = False  # an image has any number of the classes, and each logit goes through a sigmoid
    thresholds: tuple[Probability, ...] = ()  # of multi_label: the probability from which each class is predicted
    classes: tuple[ClassName, ...] = Field(min_length=2, max_length=MAX_CLASSES)
    format: int = Field(default=FORMAT, ge=1)

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Raises ConfigError for an unknown backbone."""
        row = find_backbone(self.backbone)
        if self.image_size < row.min_size:
            raise ValueError(f"image_size is below {row.min_size}, the least of {row.name}")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("two classes have the same name")
        if self.thresholds and not (self.multi_label and len(self.thresholds) == len(self.classes)):
            raise ValueError("thresholds are for multi_label, one for each class")
        if self.pretrained:
            if self.multi_label or len(self.classes) != 1000:
                raise ValueError("the ImageNet head has 1000 classes, of which an image has one")
            if row.fixed_head_size and self.image_size != row.size:
                raise ValueError(f"the ImageNet head of {row.name} needs image_size {row.size}")
        return self

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """The spec in a model file; types are not converted. Raises pydantic's ValidationError, and ConfigError."""
        return cls.model_validate_json(text, strict=True)

    def to_json(self) -> str:
        return json.dumps(self.model_dump(), ensure_ascii=False, indent=1)

    @property
    def pretrained(self) -> bool:
        """Whether the head is the network's own, for the 1000 classes of ImageNet."""
        return self.pooling == "imagenet"

    @property
    def ids(self) -> tuple[str, ...]:
        """WordNet ids of the 1000 ImageNet classes; empty strings for classes of the user's own."""
        if self.pretrained:
            return tuple(entry.id for entry in imagenet_classes())
        return ("",) * len(self.classes)

    @property
    def label_type(self) -> LabelType:
        """What a prediction is: one of the classes, or any number of them."""
        return MULTILABEL if self.multi_label else MULTICLASS

    @property
    def linear_head(self) -> bool:
        """Whether the head is one dense layer on pooled features."""
        return not (self.pretrained or self.hidden or self.cosine)

    @property
    def transform(self) -> Transform:
        return transform_of(find_backbone(self.backbone), self.image_size, self.resize)


def transform_of(row: Backbone, image_size: int, resize: Literal["crop", "squash", "pad"]) -> Transform:
    """How image files become the inputs of a classifier on the backbone `row`."""
    return Transform(size=image_size, resize=resize, crop=row.crop, interpolation=row.interpolation)
