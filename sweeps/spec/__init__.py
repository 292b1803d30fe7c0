"""The spec: what one YAML file says about a sweep."""
