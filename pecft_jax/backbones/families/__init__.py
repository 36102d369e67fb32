"""Families of backbones, a folder each: model, names of published weights, cards."""
