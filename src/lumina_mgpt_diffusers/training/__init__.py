# Copyright 2026 The lumina-mgpt-diffusers authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning of Lumina-mGPT. Needs the extra `train`."""

from .arguments import DataArguments, FineTuningArguments, LoraArguments, ModelArguments, PretokenizeArguments
from .encoding import EncodingSettings, Skipped
from .fine_tuning import fine_tune
from .memory import TrainingMemoryEstimate, estimate_training_memory
from .pretokenization import PretokenizationReport, pretokenize
from .progressive import fine_tune_progressively
from .samples import BadSampleError, ConversationSource, DatasetSource, ImageFolderSource, Sample, TaskFormat
from .trainer import LuminaMGPTTrainer
from .training_data import PretokenizedData, TrainingData
from .transformer import TrainableTransformer, TrainingOutput, make_trainable
from .validation_images import ValidationImages


__all__ = [
    "BadSampleError",
    "ConversationSource",
    "DataArguments",
    "DatasetSource",
    "EncodingSettings",
    "FineTuningArguments",
    "ImageFolderSource",
    "LoraArguments",
    "LuminaMGPTTrainer",
    "ModelArguments",
    "PretokenizationReport",
    "PretokenizeArguments",
    "PretokenizedData",
    "Sample",
    "Skipped",
    "TaskFormat",
    "TrainableTransformer",
    "TrainingData",
    "TrainingOutput",
    "ValidationImages",
    "TrainingMemoryEstimate",
    "estimate_training_memory",
    "fine_tune",
    "fine_tune_progressively",
    "make_trainable",
    "pretokenize",
]
