"""Transfer learning for image classification, from one YAML file."""
