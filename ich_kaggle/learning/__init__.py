"""The slice level: models, augmentation, data loading and training with torch."""
