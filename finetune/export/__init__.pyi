from .exporter import ExportResult as ExportResult, export_classifier as export_classifier
from .formats import (
    EXPORT_FORMATS as EXPORT_FORMATS,
    ExportFormat as ExportFormat,
    ExportJob as ExportJob,
    find_format as find_format,
    register_export_format as register_export_format,
)
from .parity import Parity as Parity
