# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning of Lumina-mGPT. Needs the extra `train`."""

from .encoding import EncodingSettings
from .pretokenization import PretokenizationReport, pretokenize
from .samples import ConversationSource, DatasetSource, ImageFolderSource, TaskFormat
from .training_data import PretokenizedData, TrainingData
from .transformer import make_trainable


__all__ = [
    "ConversationSource",
    "DatasetSource",
    "EncodingSettings",
    "ImageFolderSource",
    "PretokenizationReport",
    "PretokenizedData",
    "TaskFormat",
    "TrainingData",
    "make_trainable",
    "pretokenize",
]
