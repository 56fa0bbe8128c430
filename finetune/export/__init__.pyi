from .exporter import ExportResult as ExportResult, Parity as Parity, export_classifier as export_classifier
from .formats import find_format as find_format
